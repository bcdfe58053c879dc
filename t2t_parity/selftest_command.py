"""`python -m parity selftest`: insert known mistakes into correct pairs; every one has to be detected."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    twins: bool = False
    """Check pairs whose JAX model is one of Linen, Equinox or Haiku, and mistakes in them, in place of the others."""
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
    if options.opaque and options.twins:
        raise ValueError("--opaque is about the pairs in NNX, --twins about the others: give one of them")
    console = make_console()
    with console.status("selftest") as status:
        chosen: dict[str, Any] = {"mutations": known.TWIN_MISTAKES, "families": tuple(known.TWINS)}
        outcome = known.run(
            seeds=options.seeds,
            workers=2,
            opaque=options.opaque,
            progress=status.update,
            **(chosen if options.twins else {}),
        )
    console.print(known.table(outcome))
    console.print(known.verdict(outcome))
    if options.json is not None:
        write_text(options.json, outcome.to_json())
    return cli.OK if outcome.passed else cli.FAILED
