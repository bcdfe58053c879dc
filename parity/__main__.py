"""`python -m parity`: check, convert. Exit codes: 0 every check passes, 1 a check fails, 2 invalid arguments."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import tyro
from rich.console import Console
from tyro.conf import Positional

from parity.ours.power_command import Power, run_power
from parity.ours.train_command import Train, run_train
from t2t_common.io import cli
from t2t_common.io.files import check_target, write_text
from t2t_common.io.terminal import make_console, plain


@dataclasses.dataclass(frozen=True)
class Check:
    """Check that a model is the same in PyTorch and in JAX: every layer, the loss and every gradient."""

    name: Positional[str]
    """Name of the model, as listed by t2t_torch.list_models()."""
    checkpoint: Path | None = None
    """Weights: .pth, .pth.tar, .safetensors or an Orbax folder. Default: random weights that leave no layer neutral."""
    level: Literal["forward", "gradients", "train"] = "gradients"
    """What to compare: the layers only; also loss and gradients; also training mode with shared random draws."""
    img_size: tuple[int, ...] | None = None
    """Image size in pixels: one number for a square, or height and width. Default: that of the model or checkpoint."""
    in_chans: int | None = None
    """Number of input channels."""
    num_classes: int | None = None
    """Number of classes of the head."""
    batch: int = 2
    """Number of images in the batch."""
    scan_blocks: bool = False
    """Stack the blocks of the JAX model and run them in a scan; they are compared as one module."""
    seed: int = 0
    """Seed for the random weights and images."""
    formats: bool = False
    """Also report the error of bfloat16 and of the device's default matrix products."""
    memory: float = 2.5
    """Memory limit in GiB for models and activations; more memory speeds up the check of a large model."""
    html: Path | None = None
    """File for the report as a single HTML page."""
    json: Path | None = None
    """File for the complete report as JSON."""
    junit: Path | None = None
    """File for the report as JUnit XML, for CI systems."""


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert weights between .pth, .pth.tar, .safetensors and an Orbax folder, in any direction.

    The weights are preserved bit for bit unless sizes other than the source's are requested; changes are reported."""

    source: Positional[Path]
    """File or folder to read."""
    target: Positional[Path]
    """File or folder to write. The suffix selects the format; without a known suffix it is an Orbax folder."""
    model: str | None = None
    """Model that the weights belong to, if the source does not record it."""
    img_size: tuple[int, ...] | None = None
    """Image size in pixels, if the source does not record it."""
    in_chans: int | None = None
    """Number of input channels, if the source does not record it."""
    num_classes: int | None = None
    """Number of classes, if the source does not record it."""
    raw: bool = False
    """Use the raw weights even if the source has an exponential moving average."""
    check: bool = True
    """Check that both frameworks compute the same with these weights, and store the result in the metadata."""


@dataclasses.dataclass(frozen=True)
class Render:
    """Render a report written by `check --json` in another format."""

    source: Positional[Path]
    """JSON file to read."""
    html: Path | None = None
    """File for the report as a single HTML page."""
    junit: Path | None = None
    """File for the report as JUnit XML."""


@dataclasses.dataclass(frozen=True)
class Selftest:
    """Check that the check can fail: every known mistake inserted into a correct pair must be detected."""

    seeds: int = 40
    """Number of seeds for which every unmodified pair must pass."""
    json: Path | None = None
    """File for all outcomes as JSON."""


@dataclasses.dataclass(frozen=True)
class Survey:
    """Check every model of this project and write the results to a page such as docs/parity.md."""

    out: Path
    """Page to write; the results are also written next to it as JSON."""
    names: tuple[str, ...] = ()
    """Models to check; all by default. Results of other models already in the page are kept."""
    memory: float = 2.5
    """Memory limit in GiB for models and activations; more memory speeds up the check of a large model."""


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Show settings that affect numerical results, and measure defaults that differ between the frameworks."""


Command = (
    Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Power, tyro.conf.subcommand("power")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Render, tyro.conf.subcommand("report")]
    | Annotated[Selftest, tyro.conf.subcommand("selftest")]
    | Annotated[Survey, tyro.conf.subcommand("survey")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def check(options: Check, console: Console) -> int:
    from parity.ours.pair import SCANNED, make_pair
    from parity.ours.weight_files import saved_arguments
    from parity.proof.check import check as prove

    sizes = _sizes(options)
    if options.checkpoint is not None:
        sizes = {**saved_arguments(options.checkpoint), **sizes}
    targets = _targets(options, "html", "json", "junit")
    checkpoint = None if options.checkpoint is None else str(options.checkpoint)
    with console.status(f"{options.name}: creating both models") as status:
        torch_model, jax_model = make_pair(
            options.name, seed=options.seed, checkpoint=checkpoint, scan_blocks=options.scan_blocks, **sizes
        )
        shape = (options.batch, torch_model.in_chans, *torch_model.img_size)
        images = np.random.RandomState(options.seed).standard_normal(shape)
        report = prove(
            torch_model,
            jax_model,
            images,
            rules=SCANNED if options.scan_blocks else None,
            level=options.level,
            formats=options.formats,
            memory=options.memory,
            same_trainable=True,
            progress=lambda stage: status.update(f"{options.name}: {stage}"),
        )
    report = dataclasses.replace(report, settings={**report.settings, "name": options.name})
    return _show(report, targets, console)


def render(options: Render, console: Console) -> int:
    from parity.report.report import read_report

    targets = _targets(options, "html", "junit")
    return _show(read_report(options.source), targets, console)


def _targets(options: Check | Render, *names: str) -> dict[str, Path]:
    """Return the files to write, by format, after checking that each folder exists."""
    targets = {name: path for name in names if (path := getattr(options, name)) is not None}
    for path in targets.values():
        check_target(path)
    return targets


def _show(report: Any, targets: dict[str, Path], console: Console) -> int:
    color = console.is_terminal and console.color_system is not None
    (console.file if color else sys.stdout).write(report.render(width=console.width, color=color))
    for name, path in targets.items():
        write_text(path, getattr(report, f"to_{name}")())
        console.print(plain(f"report written to {path}"), soft_wrap=True)
    return cli.OK if report.passed else cli.FAILED


def convert(options: Convert, console: Console) -> int:
    from parity.ours.weight_files import carry_over

    with console.status(plain(f"converting {options.source}")):
        done = carry_over(
            options.source,
            options.target,
            options.model,
            use_ema=not options.raw,
            check=options.check,
            **_sizes(options),
        )
    for note in done.notes:
        print(note, file=sys.stderr)
    how = f"not as in {options.source}: {'; '.join(done.changes)}" if done.changes else "bit for bit"
    console.print(plain(f"{options.target}: {len(done.ledger)} tensors of {done.model}, {how}"), soft_wrap=True)
    return cli.OK


def selftest(options: Selftest, console: Console) -> int:
    from parity.selftest import run, table, verdict

    if options.json is not None:
        check_target(options.json)
    with console.status("selftest") as status:
        outcome = run(seeds=options.seeds, workers=2, progress=status.update)
    console.print(table(outcome))
    console.print(verdict(outcome))
    if options.json is not None:
        write_text(options.json, outcome.to_json())
    return cli.OK if outcome.passed else cli.FAILED


def survey(options: Survey, console: Console) -> int:
    from parity.environment import fingerprint
    from parity.ours.survey import survey as examine
    from parity.ours.survey import write
    from t2t_config import MODELS

    check_target(options.out)
    figures = []
    with console.status("survey") as status:
        for figure in examine(options.names or tuple(MODELS), memory=options.memory, progress=status.update):
            figures.append(figure)
            write(figures, fingerprint(), options.out)
            console.print(f"{figure.name}: {'every gate holds' if figure.passed else 'FAILED'}, {figure.seconds:.0f} s")
    console.print(plain(f"{len(figures)} models written to {options.out}"), soft_wrap=True)
    return cli.OK if all(figure.passed for figure in figures) else cli.FAILED


def doctor(console: Console) -> int:
    from parity.doctor import doctor as examine

    examine(console)
    return cli.OK


def _sizes(options: Check | Convert) -> dict[str, object]:
    sizes: dict[str, object] = {"in_chans": options.in_chans, "num_classes": options.num_classes}
    if options.img_size is not None:
        if len(options.img_size) not in (1, 2):
            raise ValueError(f"--img-size takes one number or two, got {len(options.img_size)}")
        sizes["img_size"] = options.img_size[0] if len(options.img_size) == 1 else options.img_size
    return {key: value for key, value in sizes.items() if value is not None}


def main(args: Sequence[str]) -> int:
    command: Any = cli.parse(
        cast("type[Any]", Command), args or ["--help"], prog="python -m parity", description=__doc__ or ""
    )
    console = make_console()
    match command:
        case Check():
            return check(command, console)
        case Power():
            return run_power(command, console)
        case Convert():
            return convert(command, console)
        case Train():
            return run_train(command, console)
        case Render():
            return render(command, console)
        case Selftest():
            return selftest(command, console)
        case Survey():
            return survey(command, console)
        case _:
            return doctor(console)


if __name__ == "__main__":
    cli.run_and_end(main)  # a regular exit could hang after a failed Orbax write
