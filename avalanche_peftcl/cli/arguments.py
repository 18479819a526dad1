"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings to replace: strategy.lr=0.1"),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", metavar="FILE", help="The frozen network's weights."),
]
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="Let the frozen network's weights be downloaded.")
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON in the place of tables.")]
Export = Annotated[
    Path, typer.Argument(metavar="EXPORT", help="File of peftcl export, or a run's folder.")
]
Task = Annotated[
    int | None,
    typer.Option("--task", metavar="N", help="Task label, for a network that needs one."),
]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, auto, ...")]
