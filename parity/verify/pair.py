"""In a confined process: pair PyTorch's tensors, of which it knows names, shapes and types, with those of a module."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parity.carry.ledger import build_ledger
from parity.carry.rules import Rules
from parity.verify.build import PORT, explained, load_file
from parity.verify.module import made


def answer(meta: Mapping[str, Any], given: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the ledger of a port that returns a module; `rules` in its file are those of `parity.Rules`."""
    path = Path(meta["folder"]) / PORT
    try:
        module = load_file(path)
        model, _ = made(module.port)
        rules = getattr(module, "rules", None) or Rules()
        state = {
            name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in meta["state"].items()
        }
        state |= {alias: state[name] for alias, name in meta["aliases"].items() if name in state}
        ledger = build_ledger(state, model, rules)
        return {"ledger": [dataclasses.asdict(entry) for entry in ledger]}, {}
    except BaseException as error:
        message, line = explained(error, path)
        return {"error": message, "line": line}, {}
