import tomllib
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parents[1]
torch.set_num_threads(1)  # of toys a second thread takes longer than it saves


@pytest.fixture(autouse=True, scope="session")
def installed(tmp_path_factory):
    """What pyproject.toml says, as an installation would write it, in front of any other."""
    folder = tmp_path_factory.mktemp("installed")
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"peftcl_prompts-{project['version']}.dist-info"
    info.mkdir()
    metadata = ["Metadata-Version: 2.1", f"Name: {project['name']}"]
    metadata += [f"Version: {project['version']}"]
    metadata += [f"Requires-Dist: {needed}" for needed in project["dependencies"]]
    (info / "METADATA").write_text("\n".join(metadata) + "\n", encoding="utf-8")
    ((group, points),) = project["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {module}" for name, module in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.syspath_prepend(str(HERE))
        yield project
