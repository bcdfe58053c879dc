"""What `parity` says of a pair, and whether it is right."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import torch
from flax import nnx
from torch.utils import _pytree as pytree

import parity
from parity.report.report import Report
from tools.reliability.grammar.direct import CHANGED, HUGE, SAME, behaviour, derivative_holds, difference
from tools.reliability.grammar.tree import Tree

EQUAL, DIFFERENT, REFUSED, CRASHED, NOT_RUN = "EQUAL", "DIFFERENT", "refused", "crashed", "not run"
NO_REFERENCE = "PyTorch's own derivative is wrong"
STEPS, AGREE = (1e-5, 1e-6), 1e-5
"""Of central differences in float64, and how well both have to agree."""
FALSE_PASS, FALSE_ALARM, CRASH = "false pass", "false alarm", "crash"
FAULTS = (FALSE_PASS, FALSE_ALARM, CRASH)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`expected` is empty where a mistake changes nothing on these inputs, or hardly more than rounding does."""

    expected: str
    said: str
    fault: str = ""
    kind: str = ""
    """Which rows failed, or which exception came from where: faults of one kind are likely to be one."""
    detail: str = ""
    seconds: float = 0.0


def judge(tree: Tree) -> Verdict:
    """Runs `parity` on the pair of `tree`.

    A pair of which a half does not run by itself is not handed to it: flax's by its mistake, or PyTorch's, whose
    GroupNorm takes no single number.
    """
    try:
        _run_by_itself(tree)
        expected = _expected(tree)
    except Exception:
        return Verdict("", NOT_RUN)  # the mistake is one that nobody could overlook
    start = time.process_time()
    try:
        with quiet():
            report = _report(tree)
    except ValueError as error:
        said, kind, detail = REFUSED, _kind_of_error(error), str(error)
        if not from_parity(error):
            said = CRASHED
    except Exception as error:
        said, kind = CRASHED, _kind_of_error(error)
        detail = "".join(traceback.format_exception(error)[-3:])
    else:
        said, kind, detail = EQUAL if report.passed else DIFFERENT, _kind_of_rows(report), str(report.brief())
    fault = _fault(expected, said)
    if fault == FALSE_ALARM and only_gradients(kind) and derivative_is_wrong(tree):
        return Verdict("", NO_REFERENCE)
    seconds = time.process_time() - start
    if fault == FALSE_PASS and tree.mistake:
        kind = f"{type(tree.mistake[0]).__name__}: {tree.mistake[1]}"
    return Verdict(expected, said, fault, kind if fault else "", detail if fault else "", seconds)


def _fault(expected: str, said: str) -> str:
    if said == CRASHED:
        return CRASH
    if expected == EQUAL and said != EQUAL:
        return FALSE_ALARM
    return FALSE_PASS if expected == DIFFERENT and said == EQUAL else ""


def _expected(tree: Tree) -> str:
    if tree.mistake is None:
        return EQUAL
    error = changed(tree)
    return DIFFERENT if error > CHANGED else ""


def _run_by_itself(tree: Tree) -> None:
    with quiet(), torch.no_grad():
        tree.models()[0].eval()(*map(torch.from_numpy, tree.inputs()))


def only_gradients(kind: str) -> bool:
    """Whether nothing but gradients of the whole model failed: no output, no loss, no module's own derivative."""
    return all(part.startswith(("gradient ", "activation gradient ")) for part in kind.split(", "))


def derivative_is_wrong(tree: Tree) -> bool:
    """Whether PyTorch's backward pass contradicts central differences of its own forward pass, in float64.

    As that of `BatchNorm2d` in evaluation mode does on the CPU (PyTorch 2.13), where the gradient that comes back is a
    transposed mean's, expanded: `bn(x).flatten(2).transpose(1, 2).mean(1)`. Nothing is known, and the answer is no,
    where differences of two steps do not agree with each other (kinks, parts in float32), or where flax's derivative is
    not its differences either (a gradient that is stopped).
    """
    model = tree.models()[0].double().eval()
    inputs = [torch.from_numpy(x) for x in tree.inputs()]
    if not inputs or not all(x.is_floating_point() for x in inputs):
        return False
    draw = torch.Generator().manual_seed(0)
    direction = [torch.randn(x.shape, dtype=torch.float64, generator=draw) for x in inputs]

    def loss(arrays: list[torch.Tensor]) -> torch.Tensor:
        weights = torch.Generator().manual_seed(1)
        outputs = [x for x in pytree.tree_leaves(model(*arrays)) if isinstance(x, torch.Tensor)]
        outputs = [torch.where(x.abs() < HUGE, x, 0.0) for x in outputs]  # what a mask writes hides the rest
        parts = [(x * torch.randn(x.shape, dtype=torch.float64, generator=weights)).sum().real for x in outputs]
        return torch.stack(parts).sum()

    def difference_of(step: float) -> float:
        ends = [loss([x + sign * step * d for x, d in zip(inputs, direction, strict=True)]) for sign in (1, -1)]
        return float(ends[0] - ends[1]) / (2 * step)

    with quiet():
        if not any(isinstance(x, torch.Tensor) for x in pytree.tree_leaves(model(*(x.double() for x in inputs)))):
            return False  # outputs of a class of its own
        leaves = [x.double().requires_grad_() for x in inputs]
        gradients = torch.autograd.grad(loss(leaves), leaves, allow_unused=True)
        with torch.no_grad():
            wanted, again = map(difference_of, STEPS)
    found = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None)
    agree = abs(wanted - again) <= AGREE * abs(wanted)
    wrong = agree and abs(found - wanted) > 10 * AGREE * max(abs(found), abs(wanted))
    with quiet():
        return wrong and derivative_holds(tree.models()[1], flax_inputs(tree), STEPS, AGREE)


def changed(tree: Tree) -> float:
    """How much the mistake changes what flax's half does: see `difference`.

    A half that takes images as PyTorch has them has no mistake in that layout: `parity` accepts it, and says so.
    """
    inputs = flax_inputs(tree)
    with quiet():
        wrong, right = (behaviour(pair.models()[1], inputs, tree.level) for pair in (tree, tree.right))
        error = difference(wrong, right)
        if error >= SAME and any(x.ndim == 4 for x in inputs):
            with contextlib.suppress(Exception):  # it takes no other layout
                other = behaviour(tree.models()[1], tree.inputs(), tree.level)
                if "gradient input" in other:
                    other["gradient input"] = other["gradient input"].transpose(0, 2, 3, 1)
                error = min(error, difference(other, right))
    return 0.0 if error < SAME else error


def flax_inputs(tree: Tree) -> list[np.ndarray]:
    return [x.transpose(0, 2, 3, 1) if x.ndim == 4 else x for x in tree.inputs()]


def _report(tree: Tree) -> Report:
    model, flax_model = tree.models()
    before = _weights(flax_model)
    parity.torch_to_jax(model, flax_model, cast=any(x.dtype.name == "int64" for x in _buffers(model)))
    if _weights(flax_model) != before:
        raise AssertionError("the weights that parity carried are not those of the pair")
    return parity.check(model, flax_model, tree.inputs(), level=tree.level)


def _buffers(model: object) -> list[np.ndarray]:
    return [buffer.numpy() for name, buffer in model.named_buffers() if "num_batches" not in name]  # type: ignore[attr-defined]


def _weights(model: nnx.Module) -> dict[tuple, str]:
    """Path -> digest of every variable but the state of random numbers."""
    state = nnx.state(model, nnx.Not(nnx.RngState))
    return {
        path: hashlib.sha256(np.asarray(leaf[...]).tobytes()).hexdigest() for path, leaf in nnx.to_flat_state(state)
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings, and what JAX allows unless told otherwise: ranks that are promoted."""
    with warnings.catch_warnings(), np.errstate(all="ignore"), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        yield


def _kind_of_rows(report: Report) -> str:
    failed = [row for row in report.rows if not row.passed]
    return ", ".join(sorted({f"{row.kind} {row.mode} {row.precision}" for row in failed}))


def from_parity(error: Exception) -> bool:
    """Whether `parity` itself refused, rather than something that it called."""
    return "parity" in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts[-4:-1]


def _kind_of_error(error: Exception) -> str:
    """The exception, and the last lines of `parity` and of all that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/parity/" in f.filename]
    place = f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "outside"
    return f"{type(error).__name__} in {place}"
