"""`python -m parity power NAME`: mistakes that a check of a pair that has a name would detect or miss."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from parity.commands import named
from parity.commands.options import Parser, amount, level
from parity.commands.show import add_targets, make_console, targets_of, tell
from parity.report.text_file import saved


def main(args: Sequence[str], prog: str) -> int:
    """Show which mistakes `check` would detect with these inputs and weights, and which it would miss."""
    models = named.models_for(args)
    options = _parse(args, prog, models)
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    from parity.power.measure import power

    targets = targets_of(options)
    console = make_console()
    pair = named.pair_of(models, options)
    columns = BarColumn(), TaskProgressColumn(), TextColumn("{task.description}", markup=False)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)
        report = power(
            pair.torch_model,
            pair.inputs,
            level=options.level,
            budget=options.budget,
            progress=lambda line, share: bar.update(task, completed=share, description=line[:60]),
            **{name: pair.options[name] for name in ("gates", "loss") if name in pair.options},
        )
    sys.stdout.write(f"{report}\n")
    for path in targets.values():
        saved(report.to_json(), path)
        tell(console, f"written to {path}")
    return 0


def _parse(args: Sequence[str], prog: str, models: named.Models | None) -> argparse.Namespace:
    parser = Parser(prog, main.__doc__ or "")
    named.add_name(parser)
    parser.add_argument(
        "--level",
        type=level,
        metavar="{forward,gradients,train}",
        default="gradients",
        help="Level of the check.",
    )
    parser.add_argument(
        "--budget",
        type=amount,
        metavar="FLOAT",
        default=1000.0,
        help="Budget of the search in forward passes of the model.",
    )
    add_targets(parser, "json")
    if models is not None:
        models.add_options(parser)
    return parser.parse_args(args)
