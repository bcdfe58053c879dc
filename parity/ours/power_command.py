"""`python -m parity power NAME`: what a proof of one of our models would have caught, and what it is blind to."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from t2t_common.io import cli
from t2t_common.io.files import check_target, write_text
from t2t_common.io.terminal import plain


@dataclasses.dataclass(frozen=True)
class Power:
    """Show which mistakes `check` would have caught with such inputs and weights, and to which it is blind."""

    name: Annotated[str, tyro.conf.Positional]
    """A model of t2t_torch.list_models()."""
    checkpoint: Path | None = None
    """Weights of the proof; powered random ones by default."""
    fresh: bool = False
    """The weights that a new model has, in place of powered ones."""
    level: Literal["forward", "gradients", "train"] = "gradients"
    """That of the check."""
    img_size: int | None = None
    """Pixels of the square images; the model's own by default."""
    num_classes: int | None = None
    """Width of the head."""
    batch: int = 2
    """Images of the proof."""
    seed: int = 0
    """Of the random weights and images."""
    budget: float = 1000.0
    """What the search may cost, in forward passes of the model."""
    json: Path | None = None
    """Write all of it there."""

    def __post_init__(self) -> None:
        for name in ("batch", "budget", "img_size", "num_classes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}")


def run_power(options: Power, console: Console) -> int:
    from parity.ours.pair import make_torch
    from parity.power.measure import power

    if options.json is not None:
        check_target(options.json)
    sizes = {"img_size": options.img_size, "num_classes": options.num_classes}
    checkpoint = None if options.checkpoint is None else str(options.checkpoint)
    seed = None if options.fresh else options.seed
    model = make_torch(
        options.name, seed=seed, checkpoint=checkpoint, **{k: v for k, v in sizes.items() if v is not None}
    )
    shape = (options.batch, model.in_chans, *model.img_size)
    images = np.random.RandomState(options.seed).standard_normal(shape)
    columns = BarColumn(), TaskProgressColumn(), TextColumn("{task.description}", markup=False)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)
        report = power(
            model,
            images,
            level=options.level,
            budget=options.budget,
            progress=lambda line, share: bar.update(task, completed=share, description=line[:60]),
        )
    sys.stdout.write(f"{report}\n")
    if options.json is not None:
        write_text(options.json, report.to_json())
        console.print(plain(f"written to {options.json}"), soft_wrap=True)
    return cli.OK
