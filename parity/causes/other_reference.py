"""Causes in words for PyTorch's code, where JAX's model is the reference."""

from __future__ import annotations

import dataclasses
import re

from parity.report.findings import Cause

CHANGE = re.compile(
    r"(?P<place>in float32: )?(?:(?P<what>[^:>]+): )?(?P<ours>.+?) -> (?P<theirs>.+?)(?P<line> \([^()]+:\d+\))?"
)
"""A description "[what: ]PyTorch's -> JAX's[ (file:line)]"; the line is PyTorch's."""


def of_pytorch(cause: Cause) -> Cause:
    """Return the cause with a description that says what PyTorch computes and what the reference does instead.

    Descriptions are of what JAX did, by the code of PyTorch: "gelu -> tanh gelu (model.py:12)" becomes "PyTorch
    computes gelu where the reference computes tanh gelu (model.py:12)".
    """
    return dataclasses.replace(cause, description=_of_pytorch(cause.description))


def _of_pytorch(text: str) -> str:
    change = CHANGE.fullmatch(text)
    if change is not None:
        verb, before = ("has", f"{change['what']}: ") if change["what"] else ("computes", "")
        told = f"PyTorch {verb} {change['ours']} where the reference {verb} {change['theirs']}{change['line'] or ''}"
        return f"{change['place'] or ''}{before}{told}"
    if "JAX" in text:  # it names both sides
        return text.replace("JAX's", "the reference's").replace("JAX", "the reference")
    return f"PyTorch differs from the reference, in which: {text}"
