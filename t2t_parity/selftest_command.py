"""`python -m parity selftest`: insert known mistakes into correct pairs; every one has to be detected."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from t2t_common.io import cli
from t2t_common.io.files import check_target, write_text
from t2t_common.io.terminal import make_console
from t2t_parity.runner import run


@dataclasses.dataclass(frozen=True)
class SelftestOptions:
    """Check that the check can fail: every known mistake inserted into a correct pair must be detected."""

    seeds: int = 40
    """Number of seeds for which every unmodified pair must pass."""
    opaque: bool = False
    """Give the JAX models as functions without modules; only forward passes and gradients are checked then."""
    json: Path | None = None
    """File for all outcomes as JSON."""


def main(args: Sequence[str], prog: str) -> int:
    """Run the command; return its exit code."""
    description = SelftestOptions.__doc__ or ""
    return run(lambda: selftest(cli.parse(SelftestOptions, args, prog=prog, description=description)))


def selftest(options: SelftestOptions) -> int:
    """Run the self-test, print its table and verdict, and return the exit code."""
    from t2t_parity import selftest as known

    check_target(options.json)
    console = make_console()
    with console.status("selftest") as status:
        outcome = known.run(seeds=options.seeds, workers=2, opaque=options.opaque, progress=status.update)
    console.print(known.table(outcome))
    console.print(known.verdict(outcome))
    if options.json is not None:
        write_text(options.json, outcome.to_json())
    return cli.OK if outcome.passed else cli.FAILED
