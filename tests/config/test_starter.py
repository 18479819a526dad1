import io
import subprocess
import sys

import pytest
from guides import plan
from PIL import Image
from rich.console import Console
from torchvision.datasets.folder import IMG_EXTENSIONS

from avalanche_peftcl.config import config_from
from avalanche_peftcl.config.image_folders import ENDINGS, look_into
from avalanche_peftcl.config.starter import CLASSES, starter, write_starter
from avalanche_peftcl.errors import ConfigError, DataError, UnknownComponentError
from avalanche_peftcl.registry import discover
from avalanche_peftcl.runs.dry_run import dry_run

SPLIT = [f"{part}/{name}" for part in ("train", "test") for name in ("cat", "dog")]
LAYOUTS = {  # folders of images: domains, whether there is a split
    "split": (SPLIT, (), True),
    "drawn": (["cat", "dog"], (), False),
    "domains": (
        [f"{d}/{each}" for d in ("art", "photo") for each in SPLIT],
        ("art", "photo"),
        True,
    ),
    "drawn domains": (["art/cat", "art/dog", "photo/cat", "photo/dog"], ("art", "photo"), False),
}


def write_images(root, folders, *, count=5):
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (40 * number, 25 * i, 90)).save(root / folder / f"{i}.PNG")
        (root / folder / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()


def test_images_end_as_the_benchmark_takes_them():
    assert set(ENDINGS) == set(IMG_EXTENSIONS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_is_recognised_and_its_configuration_builds(layout, tmp_path):
    folders, domains, split = LAYOUTS[layout]
    root = tmp_path / "two: {pets}, #1"  # what YAML reads otherwise
    write_images(root, folders)
    found = look_into(root)
    assert (found.domains, found.split) == (domains, split)
    assert found.classes == ("cat", "dog")
    assert found.images == 5 * len(folders)
    config = config_from(
        starter(str(root), tmp_path / "a.yaml", discover()),
        [f"output={tmp_path / 'run'}", "backbone={name: vit_glyph}", "plugins=[]", "num_threads=1"],
    )
    assert config.benchmark.options["root"] == str(root)
    assert config.benchmark.options["scenario"] == ("domain" if domains else "class")
    assert plan(config).scenario == config.benchmark.options["scenario"]


def test_it_builds_to_the_end(tmp_path):
    write_images(tmp_path / "pets", LAYOUTS["drawn domains"][0])
    text = starter(str(tmp_path / "pets"), tmp_path / "a.yaml", discover())
    changed = [f"output={tmp_path / 'run'}", "backbone={name: vit_glyph}", "num_threads=1"]
    console = Console(file=io.StringIO(), width=80)
    dry_run(config_from(text, changed), console=console)
    shown = console.file.getvalue()
    assert "2 experiences" in shown
    assert "1 art: cat, dog" in shown
    assert "16 images, 3 epochs" in " ".join(shown.split())


@pytest.mark.parametrize("name", [*CLASSES, "five_datasets", "hf_dataset", "image_list"])
def test_benchmarks_by_name_are_planned(name, tmp_path):
    config = config_from(starter(name, tmp_path / "a.yaml", discover()))
    assert config.benchmark.name == name
    plan(config)
    if name in CLASSES:
        sizes = config.benchmark.options.get("classes_per_experience")
        assert sum(sizes) == CLASSES[name] if sizes else True
        assert sizes or CLASSES[name] % config.benchmark.options["n_experiences"] == 0


def test_what_cannot_be_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    file = tmp_path / "a.yaml"
    for what, error, said in (
        ("digits", ConfigError, "is a benchmark, and a folder here; for the folder write ./digits"),
        ("./digits", DataError, "there are no images in digits"),
        ("./none", DataError, "there is no folder none"),
        ("none", UnknownComponentError, "there is no folder none, and unknown benchmark 'none'"),
        ("image_folder", ConfigError, "give the folder itself"),
    ):
        with pytest.raises(error, match=said):
            starter(what, file, discover())
    write_images(tmp_path / "one", ["cat"])
    with pytest.raises(ConfigError, match="nothing to tell apart"):
        starter("one", file, discover())


def test_a_file_is_not_replaced_unasked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_starter("digits", None, discover())
    assert str(file) == "digits.yaml"
    before = file.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"digits.yaml is there already"):
        write_starter("digits", None, discover())
    write_starter("mnist", file, discover(), overwrite=True)
    assert before != file.read_text(encoding="utf-8")


def test_the_backbone_can_be_named(tmp_path):
    write_images(tmp_path / "signs", SPLIT)
    file, known = tmp_path / "a.yaml", discover()
    config = config_from(starter(str(tmp_path / "signs"), file, known, "vit_glyph"))
    assert config.backbone.name == "vit_glyph"
    assert config.benchmark.options["augment"] == "none"  # a mirrored letter is none
    photos = config_from(starter(str(tmp_path / "signs"), file, known, "timm_vit"))
    assert photos == config_from(starter(str(tmp_path / "signs"), file, known))
    assert config_from(starter("digits", file, known, "open_clip")).backbone.name == "open_clip"
    with pytest.raises(UnknownComponentError, match="vit_glyph"):
        starter("digits", file, known, "vit_gliph")


def test_it_needs_no_torch(tmp_path):
    code = (
        "import sys; from avalanche_peftcl.cli import app; "
        f"app(['init', 'digits', {str(tmp_path / 'a.yaml')!r}], standalone_mode=False); "
        "print(sorted({'torch', 'avalanche', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
