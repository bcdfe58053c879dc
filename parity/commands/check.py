"""`python -m parity check NAME`: check a pair of models that has a name."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from parity.commands import named
from parity.commands.options import Parser, amount, level, reference
from parity.commands.show import add_targets, make_console, show, targets_of


def main(args: Sequence[str], prog: str) -> int:
    """Check that a model is the same in PyTorch and in JAX: every layer, the loss and every gradient."""
    models = named.models_for(args)
    options = _parse(args, prog, models)
    from rich.markup import escape

    from parity.proof.check import check

    targets = targets_of(options)
    console = make_console()
    name = escape(options.name)
    with console.status(f"{name}: creating both models") as status:
        pair = named.pair_of(models, options)
        report = check(
            pair.torch_model,
            pair.jax_model,
            pair.inputs,
            level=options.level,
            formats=options.formats,
            memory=options.memory,
            progress=lambda stage: status.update(f"{name}: {stage}"),
            **dict(pair.options) | ({"reference": options.reference} if options.reference else {}),
        )
    report = dataclasses.replace(report, settings={**report.settings, "name": options.name})
    return show(report, targets, console)


def _parse(args: Sequence[str], prog: str, models: named.Models | None) -> argparse.Namespace:
    parser = Parser(prog, main.__doc__ or "")
    named.add_name(parser)
    parser.add_argument(
        "--level",
        type=level,
        metavar="{forward,gradients,train}",
        default="gradients",
        help="What to compare: the layers only; also loss and gradients; also training mode with shared random draws.",
    )
    parser.add_argument(
        "--formats",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="Also report the error of bfloat16 and of the device's default matrix products.",
    )
    parser.add_argument(
        "--memory",
        type=amount,
        metavar="FLOAT",
        default=2.5,
        help="Memory limit in GiB for models and activations; more memory speeds up the check of a large model.",
    )
    parser.add_argument(
        "--reference",
        type=reference,
        metavar="{torch,jax}",
        default=None,
        help="Which model is the reference, correct by definition; the other one is the port. (default: the "
        "setting of the pair, else torch)",
    )
    add_targets(parser, "html", "json", "junit")
    if models is not None:
        models.add_options(parser)
    return parser.parse_args(args)
