"""How a command ends early: with one message and an exit code, whatever went wrong."""

import signal
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from avalanche_peftcl import errors
from avalanche_peftcl.console import complain, visible
from avalanche_peftcl.errors import PEFTCLError
from avalanche_peftcl.registry.wording import clip
from avalanche_peftcl.runs.signals import Terminated, termination_raised

# told in one line: every warning of ours
_PLAIN = tuple(
    each for name in errors.__all__ if issubclass(each := getattr(errors, name), Warning)
)
_LONGEST = 20_000  # letters of a message


class PlainEnds(TyperGroup):
    """Turns errors made on purpose into one message and an exit code, warnings into one line."""

    def invoke(self, ctx: Any) -> Any:
        """Call the command."""
        with warnings.catch_warnings():
            for category in _PLAIN:
                warnings.simplefilter("always", category)
            # Avalanche imports a solver for one method that is none of ours
            warnings.filterwarnings("ignore", "no QP solver found", UserWarning)
            default = warnings.showwarning

            def show(message: Any, category: Any, *place: Any, **more: Any) -> None:
                if issubclass(category, _PLAIN):
                    complain("warning", str(message), "yellow")
                else:
                    default(visible(message, lines=True), category, *place, **more)

            warnings.showwarning = show
            try:
                with termination_raised():
                    return super().invoke(ctx)
            except BrokenPipeError:
                raise
            except (PEFTCLError, OSError) as error:
                complain("error", clip(str(error), _LONGEST), "red")
                raise typer.Exit(2) from None
            except KeyboardInterrupt as stop:
                told = "; ".join(getattr(stop, "__notes__", [])) or (
                    "the experiences of a run that were finished are on disk, in its output "
                    "folder; peftcl run --resume FOLDER goes on with it"
                )
                how, number = "interrupted", int(signal.SIGINT)
                if isinstance(stop, Terminated):
                    how, number = "terminated", stop.number
                complain(how, told, "red")
                raise typer.Exit(128 + number) from None
