"""`python -m parity verify SPEC.py PORT.py`: the verdict on a port that nobody has to trust."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from parity.commands.options import Parser, amount, positive
from parity.commands.show import make_console


def main(args: Sequence[str], prog: str) -> int:
    """Check a port that may cheat, in processes of its own, on secret weights and inputs; for agents and CI."""
    options = _parse(args, prog)
    from rich.markup import escape

    from parity.verify.run import Limits
    from parity.verify.verify import verify_port

    limits = Limits(options.seconds, options.wall, options.memory)
    given = {"trials": options.trials, "limits": limits, "locate": options.locate}
    if options.json:
        with contextlib.redirect_stdout(sys.stderr):  # what the specification prints
            verdict = verify_port(options.spec, options.port, **given)
        print(verdict.as_json())
        return verdict.exit_code
    name = escape(options.port.name)
    with make_console().status(f"{name}: the reference") as status:
        verdict = verify_port(
            options.spec, options.port, progress=lambda stage: status.update(f"{name}: {stage}"), **given
        )
    print(verdict)
    return verdict.exit_code


def _parse(args: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(prog, main.__doc__ or "")
    parser.add_argument(
        "spec", metavar="SPEC.py", type=Path, help="Trusted file with reference() and inputs(seed), in PyTorch."
    )
    parser.add_argument(
        "port", metavar="PORT.py", type=Path, help="File with port(weights), which returns a function of the inputs."
    )
    parser.add_argument("--json", action="store_true", help="Print the verdict as a JSON object of less than 4 KB.")
    parser.add_argument(
        "--trials", type=positive, metavar="N", default=3, help="Number of secret weights, inputs and shapes."
    )
    parser.add_argument(
        "--seconds", type=positive, metavar="N", default=600, help="CPU time of each of the port's processes."
    )
    parser.add_argument(
        "--wall", type=amount, metavar="SECONDS", default=3600.0, help="Time by the clock of each of them."
    )
    parser.add_argument("--memory", type=amount, metavar="GIB", default=16.0, help="Address space of each of them.")
    parser.add_argument(
        "--locate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Look for the line to change, if the port is different.",
    )
    return parser.parse_args(args)
