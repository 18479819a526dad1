"""Avalanche's loggers by name, in the folder of the run; a run that goes on writes on."""

import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from avalanche.logging import TensorboardLogger
from avalanche.logging import WandBLogger as _WandBLogger

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.files import make_folder, replace_file
from avalanche_peftcl.registry.offers import LoggerOffers

__all__ = ["NamedTensorboardLogger", "WandBLogger", "tensorboard", "wandb"]

_EXPERIENCE = re.compile(r"/Exp(\d+)")
_UNUSUAL = re.compile(r"[^\w.-]+")
_EVENTS = "events.out.tfevents.*"  # TensorBoard's files


class NamedTensorboardLogger(TensorboardLogger):
    """Avalanche's logger for TensorBoard, in which experiences have names.

    Avalanche ends what is measured of one experience with ``Exp003``; here its name follows.

    Attributes:
        experience_names: Of the experiences, in their order; none leaves the numbers alone.
    """

    experience_names: Sequence[str] = ()

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """Log a value under a name that a person reads."""
        super().log_single_metric(_EXPERIENCE.sub(self._called, name), value, x_plot)

    def _called(self, found: re.Match[str]) -> str:
        number = int(found[1])
        if number >= len(self.experience_names):
            return found[0]
        return f"{found[0]}_{_UNUSUAL.sub('_', self.experience_names[number])}"


class WandBLogger(_WandBLogger):
    """Avalanche's logger for Weights & Biases, for versions of wandb that Avalanche does not know.

    Avalanche 0.6.0 asks for ``wandb.viz``, which wandb moved to ``wandb.plot``, and for
    ``wandb.util.generate_id`` unless it is given an id.

    Args:
        id: Of the run on Weights & Biases; ``None`` draws one.
        params: Further arguments of ``wandb.init``.
        options: Further arguments of Avalanche's logger.
    """

    wandb: Any

    def __init__(
        self,
        *,
        id: str | None = None,
        params: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        drawn = {"id": secrets.token_hex(4) if id is None else id}
        super().__init__(params=drawn | dict(params or {}), **options)

    def import_wandb(self) -> None:
        """Import wandb, with the names that Avalanche asks for."""
        super().import_wandb()
        if not hasattr(self.wandb, "viz"):
            self.wandb = _Renamed(self.wandb)


class _Renamed:
    """The module wandb, and in it ``viz`` where that was."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.viz = module.plot

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def tensorboard(*, output: Path, resume: bool, listed: Collection[str]) -> NamedTensorboardLogger:
    """Log every metric for TensorBoard, into the folder ``tensorboard`` of the run.

    ``tensorboard --logdir runs`` shows all runs below that folder. The x-axis counts training
    iterations; a method that has none puts everything at 0. Where a run goes on from a checkpoint,
    what came after that is logged again.

    Args:
        output: Folder of the run.
        resume: Whether a run goes on; otherwise the events of the run that it replaces are removed.
        listed: What the record of that run lists; without ``tensorboard`` nothing is removed.

    Returns:
        Avalanche's logger.

    Raises:
        OSError: If the folder cannot be written to.
    """
    folder = output / "tensorboard"
    make_folder(folder)
    if not resume and folder.name in listed:
        for path in folder.glob(_EVENTS):
            path.unlink()
    return NamedTensorboardLogger(folder)


def wandb(
    *,
    output: Path,
    resume: bool,
    settings: Mapping[str, Any],
    project_name: str = "avalanche_peftcl",
    run_name: str | None = None,
    mode: Literal["online", "offline", "disabled"] | None = None,
    params: dict[str, Any] | None = None,
) -> WandBLogger:
    """Log every metric and the settings to Weights & Biases.

    Args:
        output: Folder of the run; wandb's files are in its folder ``wandb``.
        resume: Whether a run goes on; it keeps its id on Weights & Biases, which is kept beside
            wandb's files.
        settings: Of the run, with all defaults.
        project_name: Project on Weights & Biases.
        run_name: Name there; ``None`` takes the path of the folder.
        mode: ``"offline"`` keeps the files for ``wandb sync``; ``None`` is wandb's own default,
            which the environment variable ``WANDB_MODE`` sets.
        params: Further arguments of ``wandb.init``, such as ``entity``, ``group``, ``tags``.

    Returns:
        Avalanche's logger, see :class:`WandBLogger`.

    Raises:
        ConfigError: If wandb cannot be started; without an account, for one.
        OSError: If the folder cannot be written to.
    """
    folder = output / "wandb"
    make_folder(folder)
    known, id_ = folder / "run_id", secrets.token_hex(4)
    if resume:
        with suppress(FileNotFoundError):
            id_ = known.read_text(encoding="utf-8").strip() or id_
    given = {"id": id_, "resume": "allow"} | ({} if mode is None else {"mode": mode})
    logger = _start_wandb(
        project_name=project_name,
        run_name=output.as_posix() if run_name is None else run_name,
        save_code=False,
        config=dict(settings),
        dir=output,
        params=given | (params or {}),
    )
    replace_file(known, logger.init_kwargs["id"].encode())
    return logger


def _start_wandb(*, params: Mapping[str, Any], **options: Any) -> WandBLogger:
    from wandb.errors import Error

    try:
        return WandBLogger(params=params, **options)
    except Error as error:  # no account, no network
        raise ConfigError(
            f"logger 'wandb' cannot be started: {str(error).rstrip('.')}. Log in (wandb login), or "
            "keep the files here for later (mode: offline)"
        ) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"logger 'wandb' cannot be started: {error}; see its params") from error


@contextmanager
def closing(loggers: Iterable[Any]) -> Iterator[None]:
    """Close each logger in the end: what it holds is written, and what it began is ended.

    Args:
        loggers: Avalanche's loggers; of others a method ``close()`` is called if they have one.
    """
    failed = True
    try:
        yield
        failed = False
    finally:
        for logger in loggers:
            if isinstance(logger, TensorboardLogger):
                logger.writer.close()
            elif isinstance(logger, _WandBLogger):
                logger.wandb.finish(exit_code=int(failed))
            elif (close := LoggerOffers.of(logger).close) is not None:
                close()
