"""What ``peftcl run`` does: a run from a file, or from the folder of an earlier one."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from avalanche_peftcl.config import RunConfig, load_config
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.runs.progress import RunProgress
from avalanche_peftcl.runs.reading import read_claim
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.runs.schema import RECORD


def run_and_show(
    config: RunConfig, overwrite: bool, console: Console, *, floors: bool = False
) -> None:
    """Run a configuration and show it on ``console``.

    Args:
        config: What to run.
        overwrite: Whether an earlier run in the output folder is replaced.
        console: Where progress and result are shown.
        floors: Whether its floors are run too.

    Raises:
        PEFTCLError: As :func:`run`.
    """
    run(config, overwrite=overwrite, floors=floors, reporter=RunProgress(console))


def run_from_file(
    path: str | Path,
    overrides: Sequence[str],
    overwrite: bool,
    console: Console,
    *,
    floors: bool = False,
) -> None:
    """Run the configuration in a file and show it on ``console``.

    Args:
        path: YAML file.
        overrides: Settings that replace the file's, such as ``"strategy.lr=0.1"``.
        overwrite: Whether an earlier run in the output folder is replaced.
        console: Where progress and result are shown.
        floors: Whether its floors are run too.

    Raises:
        PEFTCLError: As :func:`run`; :class:`ConfigError` also if the file cannot be used.
    """
    run_and_show(load_config(path, overrides), overwrite, console, floors=floors)


def resume_from_folder(
    folder: Path,
    path: str | Path | None,
    overrides: Sequence[str],
    overwrite: bool,
    console: Console,
    *,
    floors: bool = False,
) -> None:
    """Go on with the unfinished run in a folder and show it on ``console``.

    Args:
        folder: The run's output folder, wherever it is now.
        path: YAML file to compare with; ``None`` takes the folder's own.
        overrides: Settings that replace the file's.
        overwrite: Whether the run is begun anew if it cannot go on.
        console: Where progress and result are shown.
        floors: Whether its floors are run too.

    Raises:
        PEFTCLError: As :func:`run`; :class:`ConfigError` also if there is no run in the folder.
    """
    settings = None
    if path is None:
        path, claim = folder / "config.yaml", read_claim(folder)
        if claim is not None:
            path, settings = folder / RECORD, claim.config
        elif not path.is_file():
            raise ConfigError(
                f"{folder} holds no run to go on with: there is no {path}; start one by "
                "peftcl run CONFIG"
            )
    config = load_config(path, overrides, settings=settings)
    config = config.model_copy(update={"output": folder})
    reporter = RunProgress(console)
    run(config, resume=True, overwrite=overwrite, floors=floors, reporter=reporter)
