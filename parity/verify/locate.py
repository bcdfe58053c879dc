"""In a confined process, after the verdict: where the port first differs. It runs both files, and decides nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parity.adapters.function import function
from parity.carry.arrays import to_tensor
from parity.carry.rules import LeafRule, Rules
from parity.proof.check import check
from parity.recording.inputs import Inputs
from parity.report.report import Report
from parity.verify.build import PORT, bound, load
from parity.verify.run import CHILD
from parity.verify.spec import Spec
from parity.verify.trials import tensors_of

LINES = re.compile(rf"\b{re.escape(PORT)}:(\d+)")


def answer(meta: Mapping[str, Any], given: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return lines of the port, PyTorch's module and line, and the cause, as `parity.check` finds them."""
    try:
        return place(_report(meta, given)), {}
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}"}, {}


def _report(meta: Mapping[str, Any], given: Mapping[str, np.ndarray]) -> Report:
    sys.path.extend(meta["paths"])  # where the specification's modules are, in the caller's process
    model = Spec.load(Path(meta["spec"])).model.float()
    held = tensors_of(model)
    weights = {name: given[f"weight/{name}"] for name in meta["weights"]}
    with torch.no_grad():
        for name, value in weights.items():
            held[name].copy_(to_tensor(value))
    state = set(meta["state"])
    fixed = {name: value for name, value in weights.items() if name not in state}
    trial, port = meta["trial"], load(Path(meta["folder"]) / PORT, meta["ledger"])
    call = bound(port, meta, trial)

    def program(params: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        own = [params.get(name, fixed.get(name)) for name in meta["weights"]]
        slots = {item["array"]: value for item, value in zip(trial["args"], args, strict=True) if "array" in item}
        slots |= {item["array"]: kwargs[name] for name, item in trial["kwargs"].items() if "array" in item}
        found = call(own, [slots[i] for i in sorted(slots)])
        return next(iter(found.values())) if list(found) == [""] else found

    arrays = [given[f"input/{i}"] for i in range(len(trial["inputs"]))]
    args, kwargs = (
        [arrays[item["array"]] if "array" in item else item["value"] for item in trial["args"]],
        {name: arrays[x["array"]] if "array" in x else x["value"] for name, x in trial["kwargs"].items()},
    )
    params = {name: value for name, value in weights.items() if name in state}
    rules = Rules(tensors=[LeafRule(re.escape(name), name) for name in params])
    return check(model, function(program, params), Inputs(*args, **kwargs), rules=rules, level=meta["level"])


def place(report: Report) -> dict[str, Any]:
    """Return what a failing report says about the place: the first failing row that names a line of the port."""
    failed = [row for row in report.rows if not row.passed]
    telling = [row for row in failed if LINES.search(row.note)]
    lines = [int(number) for number in LINES.findall(telling[0].note)] if telling else []
    module = telling[0].name if telling else report.first_divergence or ""
    causes = [cause for cause in report.causes if not module or cause.module == module] or list(report.causes)
    why = causes[0].description if causes else (telling[0].note if telling else "")
    reference = re.search(r" at (\S+:\d+) in PyTorch", telling[0].note) if telling else None
    where = reference[1] if reference and not reference[1].startswith(f"{CHILD.name}:") else ""
    return {"lines": lines, "module": module, "why": why, "reference": where}
