"""No file that is read is a program: looked for in the source, and tried on every data set."""

import ast
import io
import pickle
from pathlib import Path

import numpy as np
import pytest

import avalanche_peftcl
from avalanche_peftcl import benchmarks
from avalanche_peftcl.benchmarks.images.plain_pickle import read_plain
from avalanche_peftcl.config import load_config
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.models import InputConfig

SOURCES = sorted(Path(avalanche_peftcl.__file__).parent.rglob("*.py"))
RESTRICTED = "benchmarks/images/plain_pickle.py"  # tested below
IMAGES = "models/backbones/images.py"
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "runpy"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
LOADERS = {  # a function, the keyword that makes it safe, and values that do not
    "torch.load": ("weights_only", "False"),
    "np.load": ("allow_pickle", "True"),
    "numpy.load": ("allow_pickle", "True"),
    "yaml.load": ("Loader", "yaml.Loader"),
    "Image.open": ("formats", "None"),
}
NEVER = {"yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "pd.read_pickle"}


def found(path):
    """Yield what of the source could execute what is in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (f"import {a.name}" for a in node.names if a.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield f"from {node.module}"
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
            shell = given.get("shell")
            if name in BUILTINS | NEVER or (shell is not None and ast.unparse(shell) != "False"):
                yield name
            if name in LOADERS:
                keyword, unsafe = LOADERS[name]
                if keyword not in given or ast.unparse(given[keyword]) == unsafe:
                    yield name


def test_no_module_reads_programs():
    inside = {path.relative_to(SOURCES[0].parent).as_posix(): list(found(path)) for path in SOURCES}
    assert {name: what for name, what in inside.items() if what} == {RESTRICTED: ["import pickle"]}


def test_images_are_opened_in_one_place():
    opened = [path for path in SOURCES if "Image.open(" in path.read_text()]
    assert [path.relative_to(SOURCES[0].parent).as_posix() for path in opened] == [IMAGES]


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import load",
        "eval(text)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "yaml.unsafe_load(f)",
        "Image.open(f)",
        "Image.open(f, formats=None)",
        "run(words, shell=True)",
    ],
)
def test_what_is_looked_for_would_be_found(tmp_path, line):
    (tmp_path / "a.py").write_text(line)
    assert list(found(tmp_path / "a.py"))


RAN: list[str] = []


def program():
    RAN.append("ran")


class Program:
    def __reduce__(self):
        return program, ()


@pytest.fixture
def bomb():
    RAN.clear()
    content = pickle.dumps(Program())
    pickle.loads(content)
    assert RAN == ["ran"]  # it would go off
    RAN.clear()
    return content


@pytest.mark.parametrize("tag", ["object/apply:os.system", "name:os.system", "module:os"])
def test_settings_make_no_objects(tmp_path, tag):
    (tmp_path / "c.yaml").write_text(f"output: !!python/{tag} ['touch {tmp_path / 'ran'}']")
    with pytest.raises(ConfigError):
        load_config(tmp_path / "c.yaml")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_come_back(tmp_path, protocol):
    data = {
        "ni": [[1, 2.5, "text", None, True], (b"bytes", {3})],
        "array": np.arange(6, dtype=np.int64).reshape(2, 3),
        "scalar": np.float32(0.5),
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(data, protocol=protocol))
    read = read_plain(tmp_path / "a.pkl")
    assert np.array_equal(read.pop("array"), data.pop("array"))
    assert read == data


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_program_runs(tmp_path, bomb, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([1, Program()], protocol=protocol))
    with pytest.raises(DataError, match=r"asks for .*program, which is no plain"):
        read_plain(tmp_path / "a.pkl")
    assert RAN == []


@pytest.mark.parametrize(
    "text",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c__builtin__\ngetattr\n(S'1'\nS'upper'\ntR.",
        b"cnumpy\nload\n(S'1'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(S'1'\ntR.",
        b"c_codecs\nencode\n(S'1'\nS'rot13'\ntR.",
        b"not a pickle",
        b"",
    ],
)
def test_no_function_is_called(tmp_path, text):
    (tmp_path / "a.pkl").write_bytes(text)
    with pytest.raises(DataError, match="cannot be read as plain data"):
        read_plain(tmp_path / "a.pkl")


FILES = {
    "core50": ["paths.pkl", "labels.pkl", "LUP.pkl", "labels2names.pkl"],
    "cifar10": [f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)]
    + ["cifar-10-batches-py/test_batch", "cifar-10-batches-py/batches.meta"],
    "cifar100": [f"cifar-100-python/{name}" for name in ("train", "test", "meta")],
    "mnist": [f"MNIST/processed/{name}.pt" for name in ("training", "test")]
    + [
        f"MNIST/raw/{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ],
    "fashion_mnist": [f"FashionMNIST/processed/{name}.pt" for name in ("training", "test")],
    "svhn": ["train_32x32.mat", "test_32x32.mat"],
    "tiny_imagenet": ["tiny-imagenet-200/wnids.txt", "tiny-imagenet-200/val/val_annotations.txt"],
    "cub200": [f"CUB_200_2011/{n}.txt" for n in ("images", "train_test_split", "bounding_boxes")],
    "oxford_pets": [f"oxford-iiit-pet/annotations/{n}.txt" for n in ("trainval", "test")],
    "eurosat": ["eurosat/2750/Forest/Forest_1.jpg"],
    "five_datasets": ["cifar10/cifar-10-batches-py/data_batch_1"],
}


@pytest.mark.parametrize("name", FILES)
def test_no_data_set_runs_what_lies_in_its_folder(tmp_path, bomb, name):
    for file in FILES[name]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(bomb)
    (tmp_path / "core50_128x128").mkdir()
    (tmp_path / "batches_filelists").mkdir()
    (tmp_path / "oxford-iiit-pet" / "images").mkdir(parents=True)
    build = getattr(benchmarks, name)
    with pytest.raises(DataError):
        build(input_config=InputConfig(8), root=tmp_path, download=False)
    assert RAN == []


def test_core50s_own_loader_would_run_it(tmp_path, bomb):
    """Notice when the host no longer unpickles: the reader here can then go."""
    from contextlib import redirect_stdout

    from avalanche.benchmarks.datasets import CORe50Dataset

    for file in FILES["core50"]:
        (tmp_path / file).write_bytes(bomb)
    (tmp_path / "core50_128x128").mkdir()
    (tmp_path / "batches_filelists").mkdir()
    with pytest.raises(TypeError), redirect_stdout(io.StringIO()):
        CORe50Dataset(tmp_path, download=False)
    assert RAN
