"""Search for the change under which a module computes what JAX computed; limited by work, not by time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from parity.causes.changes import Change, around, changes
from parity.causes.failures import Wrong, distance
from parity.causes.fit_constant import fitted
from parity.causes.generic import rounded_to
from parity.causes.precision.rounding import alike, random_signs
from parity.causes.registry import Around
from parity.causes.relations import relations
from parity.causes.replay import Recording, Sites, Step, tensors_of
from parity.recording.capture import Key

GATE = 1e-13
"""Error that counts as zero, as everywhere in float64."""

NOISE = 4.0
"""Multiple of the module's own rounding noise that also counts as zero, where it is above the gate."""

STEP = 20_000
"""Fixed cost of running one function, in elements."""

TIE = 1.25
"""Roundings whose unexplained shares are within this factor count as equally good explanations."""


@dataclasses.dataclass
class Budget:
    """Number of elements that may still be computed in replays."""

    left: float

    def take(self, cost: float) -> bool:
        """Subtract `cost` if that much is left; return whether it was."""
        if self.left < cost:
            return False
        self.left -= cost
        return True


@dataclasses.dataclass(frozen=True)
class Found:
    """A switch that explains an error, and the errors without and with it."""

    switch: str
    text: str
    before: float
    after: float
    change: Change | None = None
    error: int = 0
    """Index of the error that it explains, if it explains only one."""


class Search:
    """Search for the mistake of one module."""

    def __init__(
        self,
        recording: Recording,
        wrong: Sequence[Wrong],
        budget: Budget,
        right: Collection[Key | None] = (),
        within: Collection[str] | None = None,
    ) -> None:
        """`right` are the sites where JAX agrees with PyTorch; a switch must leave them unchanged.

        With `within`, only the steps of these modules are changed.
        """
        self.within = within
        self.recording, self.wrong, self.budget, self.right = recording, wrong, budget, right
        self.base: list[Change] = []
        self.sites, self.steps = recording.run()
        recording.scored = any("softmax" in s.name or s.name == "scaled_dot_product_attention" for s in self.steps)
        self.here: Around = around(recording, self.steps)
        self.cost = sum(STEP + sum(x.numel() for x in tensors_of((s.args, s.output))) for s in self.steps) + STEP
        self.before = [item.error(self.sites) for item in wrong]
        self.gates = [self._gate(item, error) for item, error in zip(wrong, self.before, strict=True)]
        self.spent = False

    def _gate(self, item: Wrong, error: float) -> float:
        """Return the gate, or the noise of rounding every step differently, if that is far below the error."""
        shaken = self._replay(Change("", "", ((None, _shaken),)))
        noise = math.inf if shaken is None else item.error(shaken)
        other = item.wanted(self.sites)
        if shaken is None or other is None or not math.isfinite(error):
            return GATE
        replayed = item.wanted(shaken)
        noise = max((distance(a, b) for a, b in zip(replayed, other, strict=True)), default=0.0) if replayed else 0.0
        return max(GATE, min(NOISE * noise, 1e-4 * error)) if math.isfinite(noise) else GATE

    def _replay(self, change: Change) -> Sites | None:
        """Return the tensors of a replay with this change; None if PyTorch cannot run it."""
        alterations = [*change.alterations, *(a for base in self.base for a in base.alterations)]
        inner: dict[Key, Any] = {}
        for one in (*self.base, change):
            inner |= dict(one.inner or {})
        try:
            sites, _ = self.recording.run(alterations or (), inner or None)
        except Exception:  # user modules may raise anything on unexpected tensors
            return None
        return sites

    def find(self, known: Collection[tuple[str, str]] | None = None) -> list[Found]:
        """Return the switch that explains all errors, or two that each explain a part, or else the best explanation.

        Args:
            known: Try only these (switch, text), found in a similar module.
        """
        if any(item.wanted(self.sites) is None for item in self.wrong):
            return []
        full, partial = self._exact(known)
        if full or known is not None or self.within is not None:
            return full
        if not all(math.isfinite(error) for error in self.before):
            return []
        related = self._related()
        if related is not None and len(self.wrong) == 1:
            return [related]
        if partial is not None:
            return self._second(partial)
        rounded = self._rounded()
        return [x for x in (rounded or related or self._float32_sized(),) if x is not None]

    def _tried(self, known: Collection[tuple[str, str]] | None = None) -> Iterator[tuple[Change, Sites]]:
        self.roundings: list[Change] = []
        for change in changes(self.recording, self.here, self.within):
            if known is not None and (change.switch, change.text) not in known:
                continue
            if change.rounding:
                self.roundings.append(change)
            if change.family is not None:
                solved = self._fit(change)
                if solved is None:
                    continue
                change = solved
            if not self.budget.take(self.cost):
                self.spent = True
                return
            sites = self._replay(change)
            if sites is not None:
                yield change, sites

    def _exact(self, known: Collection[tuple[str, str]] | None) -> tuple[list[Found], Found | None]:
        """Return the first switch that explains all errors (its text names equivalents), and the first partial one."""
        partial: Found | None = None
        full: Found | None = None
        others: list[str] = []
        for change, sites in self._tried(known):
            if full is not None and not _compared(full.change, change):
                break
            after = [item.error(sites) for item in self.wrong]
            right = [a <= gate < b for a, b, gate in zip(after, self.before, self.gates, strict=True)]
            if any(right) and not self._keeps(sites):
                continue
            if all(right):
                if full is None:
                    full = Found(change.switch, change.text, max(self.before), max(after), change)
                elif change.switch != full.switch and not change.rounding:
                    others.append(f"{change.switch}: {change.text}")
            elif full is None and any(right) and (partial is None or (right[0] and partial.error)):
                i = right.index(True)
                partial = Found(change.switch, change.text, self.before[i], after[i], change, i)
        if full is not None and others:
            full = dataclasses.replace(full, text=f"{full.text}; on these inputs the same: {'; '.join(others[:2])}")
        return ([] if full is None else [full]), partial

    def _keeps(self, sites: Sites) -> bool:
        """Return whether the sites in `right` are unchanged."""
        for site in self.right:
            mine, theirs = self.sites.get(site, []), sites.get(site, [])
            if len(mine) != len(theirs):
                return False
            for x, y in zip(mine, theirs, strict=True):
                if x is y or (x.shape == y.shape and torch.equal(x, y)):
                    continue
                if x.shape != y.shape or distance(y.detach().numpy(), x.detach().numpy()) > GATE:
                    return False
        return True

    def _second(self, first: Found) -> list[Found]:
        """Return the first switch and one that, applied in addition, explains the remaining errors.

        If there is none, only the first is returned, unless it may match by chance: a later error that merely equals
        another known tensor can be produced by many switches.
        """
        assert first.change is not None
        self.base = [first.change]
        full, _ = self._exact(None)
        self.base = []
        if full:
            return [first, full[0]]
        if first.change.exchanges or (first.error and self._at_hand(self.wrong[first.error])):
            return []
        text = f"{first.text} (explains one of {len(self.wrong)} errors)"
        return [dataclasses.replace(first, text=text)]

    def _at_hand(self, item: Wrong) -> bool:
        """Return whether each of JAX's tensors equals an input of the module or a result of an inner module."""
        known = [x.detach().numpy() for _, x in self.here.given]
        return all(any(x.shape == y.shape and distance(x, y) <= GATE for y in known) for x in item.value)

    def _fit(self, change: Change) -> Change | None:
        """Return the member of a family that explains the first error; None if none does."""
        item = self.wrong[0]
        if any(np.iscomplexobj(x) for x in item.value):
            return None

        def values(number: float) -> np.ndarray | None:
            assert change.family is not None
            if not self.budget.take(self.cost):
                self.spent = True
                return None
            (target, _), *_ = change.alterations
            sites = self._replay(dataclasses.replace(change, alterations=((target, change.family(number)),)))
            found = None if sites is None else item.wanted(sites)
            if found is None or any(np.iscomplexobj(x) for x in found):
                return None
            return np.concatenate([x.astype(np.float64).ravel() for x in found])

        wanted = np.concatenate([x.astype(np.float64).ravel() for x in item.value])
        number = fitted(values, wanted, change.start)
        if number is None or change.family is None:
            return None
        (target, _), *_ = change.alterations
        text = change.text.replace("{value}", f"{number:.6g}")
        return dataclasses.replace(change, text=text, alterations=((target, change.family(number)),), family=None)

    def _rounded(self) -> Found | None:
        """Return the rounding that leaves the least of the error; the text also names an equally good one."""
        scores: list[tuple[float, Change, float]] = []
        for change in self.roundings:
            if not self.budget.take(self.cost):
                self.spent = True
                break
            sites = self._replay(change)
            left = None if sites is None or not self._keeps(sites) else self._left(sites, change.rounding)
            if left is not None and sites is not None:
                scores.append((left, change, max(item.error(sites) for item in self.wrong)))
        if not scores:
            return None
        scores.sort(key=lambda score: score[0])
        best, change, after = scores[0]
        equal = [other for left, other, _ in scores[1:] if left <= TIE * best and other.switch != change.switch]
        text = change.text + "".join(f"; or {other.text} ({other.switch})" for other in equal[:1])
        return Found(change.switch, text, max(self.before), after, change)

    def _left(self, sites: Sites, how: str) -> float | None:
        """Return the largest share of an error that a rounding leaves; None if it does not explain all errors."""
        found = []
        for item in self.wrong:
            reference, replayed = item.wanted(self.sites), item.wanted(sites)
            if reference is None or replayed is None:
                return None
            found.append(alike(item.value, reference, replayed, how))
        shares = [x for x in found if x is not None]
        return max(shares) if len(shares) == len(found) else None

    def _related(self) -> Found | None:
        """Return the first relation between JAX's tensor and the known tensors."""
        wrong = self.wrong[0]
        wanted = wrong.wanted(self.sites)
        if wanted is None:
            return None
        pool = [*self.here.given, *self.here.own.items()]
        pool += [(f"the result of {s.name}", x) for s in self.steps for x in tensors_of(s.output)]
        for reference, value, gate in zip(wanted, wrong.value, [self.gates[0]] * len(wanted), strict=True):
            if distance(value, reference) <= gate or np.iscomplexobj(value) or np.iscomplexobj(reference):
                continue
            others = [(name, array) for name, x in pool for array in _layouts(x, reference.shape)]
            for relation in relations(value, reference, others):
                finite = np.isfinite(relation.predicted).all()
                after = distance(value, relation.predicted) if finite else math.inf
                if after <= gate:
                    return Found(relation.switch, relation.description, distance(value, reference), after)
        return None

    def _float32_sized(self) -> Found | None:
        """Return a float32 leak if the error is unordered, in most elements, and of the size of float32 rounding."""
        wrong = self.wrong[0]
        wanted = wrong.wanted(self.sites)
        rounded = self._replay(Change("", "", ((None, lambda step: rounded_to(torch.float32, step.run())),)))
        replayed = None if rounded is None else wrong.wanted(rounded)
        if wanted is None or replayed is None:
            return None
        size = max(distance(a, b) for a, b in zip(replayed, wanted, strict=True))
        error = self.before[0]
        if not size / 4 <= error <= 4 * size or size < 2.0**-30:
            return None
        if not all(random_signs(a - b, b) for a, b in zip(wrong.value, wanted, strict=True)):
            return None
        text = f"something inside is computed in float32: the error is {error * 2**24:.2g} of its roundings (2^-24)"
        return Found("float32 leak", text, error, error)


def _compared(found: Change | None, change: Change) -> bool:
    """Return whether to try a change after one was found: both are of the same step and its function's own entry."""
    return found is not None and found.named and change.named and change.step == found.step


def _shaken(step: Step) -> Any:
    """Run the step, and move every element of its result by half an eps, randomly up or down."""
    draw = torch.Generator().manual_seed(step.occurrence)

    def shake(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        signs = torch.randint(0, 2, x.shape, generator=draw, dtype=x.dtype) * 2 - 1
        return x * (1 + torch.finfo(x.dtype).eps / 2 * signs)

    return torch.utils._pytree.tree_map(shake, step.run())


def _layouts(tensor: torch.Tensor, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return a tensor in the layouts that fit `shape`: unchanged, or channels last."""
    x = tensor.detach().cpu().numpy()
    last = [np.moveaxis(x, 1, -1)] if x.ndim > 2 else []
    return [a for a in (x, *last) if a.shape == shape and np.issubdtype(a.dtype, np.floating)]
