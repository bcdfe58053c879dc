"""`python -m parity power NAME`: mistakes that a check of one of this project's models would detect or miss."""

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
    """Show which mistakes `check` would detect with these inputs and weights, and which it would miss."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the model, as listed by t2t_torch.list_models()."""
    checkpoint: Path | None = None
    """Checkpoint with the weights. Default: random weights that leave no layer neutral."""
    fresh: bool = False
    """Use the initial weights of a new model instead."""
    level: Literal["forward", "gradients", "train"] = "gradients"
    """Level of the check."""
    img_size: int | None = None
    """Side of the square images in pixels. Default: that of the model."""
    num_classes: int | None = None
    """Number of classes of the head."""
    batch: int = 2
    """Number of images in the batch."""
    seed: int = 0
    """Seed for the random weights and images."""
    budget: float = 1000.0
    """Budget of the search in forward passes of the model."""
    json: Path | None = None
    """File for the complete result as JSON."""

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
