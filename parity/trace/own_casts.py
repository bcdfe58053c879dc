"""Casts that only the JAX program makes, as causes: without them its values are PyTorch's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from parity.causes.precision.leaks import narrowest
from parity.precision.casts import Cast
from parity.precision.jax_casts import casts
from parity.report.findings import Cause
from parity.runs.jax_side import JaxSide
from parity.trace.difference import Difference
from parity.trace.places import places
from parity.trace.regions import caller, missing
from parity.trace.values.match import match
from parity.trace.values.program import Program, traced
from parity.trace.values.torch_operations import TorchTrace


def own_casts(program: Program) -> list[Cast]:
    """Return the casts to a narrower format that are left in a program, those by design being removed."""
    return [cast for cast in casts(program.closed, "float64") if not cast.made]


def cast_causes(
    theirs: JaxSide,
    arrays: Sequence[np.ndarray],
    trace: TorchTrace,
    differences: Sequence[Difference],
    own: Sequence[Cast],
) -> dict[str, Cause]:
    """Return module -> cause for the differences that are gone if the program makes none of the casts in `own`.

    There are none if the program cannot run without them.
    """
    if not own or theirs.design is None or not differences:
        return {}
    wide = dataclasses.replace(theirs, design=dataclasses.replace(theirs.design, granted=frozenset({""})))
    try:
        left = missing(trace, match(trace, traced(wide, arrays), {}))
    except Exception:  # a program that needs its casts cannot be traced without them
        return {}
    found: dict[str, Cause] = {}
    for difference in differences:
        if left.isdisjoint(difference.region.operations):
            near = [cast for cast in own if any(cast.where and cast.where in line for line in difference.lines)] or own
            text = ", ".join(dict.fromkeys(f"{x.format} at {x.where}" if x.where else x.format for x in near))
            for place in places(trace, difference):
                path = caller(trace, place.call.key) if place.into else place.call.key[0]
                module = path or "the model"
                switch = f"{narrowest(text)} leak"
                found.setdefault(module, Cause(module, switch, f"JAX alone casts to {text}", place.error, 0.0))
    return found
