"""The mistakes that can be made in one call of a module: the changes of `parity.causes`, one at a time.

A mistake is told by its words, so that the same one can be made on other inputs, in another precision, or in the
running model with its gradients: there the catalogue is asked anew, and the tensors that it takes are those at hand.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from parity.causes.changes import Change, around, changes
from parity.causes.registry import Around
from parity.causes.replay import Place, Recording, Sites, Step
from parity.power.input_mistakes import extra

SPECIFIC, GENERIC = "specific", "generic"
PHASES = (SPECIFIC, GENERIC)
"""What is mistaken for this very function, or for the results of inner modules; what can go wrong with any step."""

IN_TRAINING = ("dropout", "alpha_dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d")
"""Functions that do nothing in evaluation mode: see `parity.power.training`."""

RUNNING = re.compile(r" \(mutate\.py:\d+\)")
"""Where PyTorch's own modules are called from in a model that makes a mistake: no place of the model's."""

NOWHERE: Place = ("", 0, 0)


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One mistake in one module.

    Attributes:
        module: dotted path.
        switch, text: what is mistaken, as in `Cause`; `number`: which of those of the same words.
        phase: one of PHASES.
        place, name, order: the altered step, and which of the mistakes of this switch there it is.
        rounding: the same function with other roundings.
    """

    module: str
    switch: str
    text: str
    number: int = 0
    phase: str = SPECIFIC
    place: Place = NOWHERE
    name: str = ""
    order: int = 0
    rounding: bool = False

    @property
    def words(self) -> tuple[str, str, str, int]:
        return self.module, self.switch, self.text, self.number

    @property
    def spot(self) -> tuple[object, ...]:
        """The same on inputs of other sizes, where the words may differ."""
        return self.module, self.switch, self.place, self.name, self.phase, self.order

    @property
    def label(self) -> str:
        return self.text if self.number == 0 else f"{self.text}, form {self.number + 1}"

    @property
    def only_in_gradients(self) -> bool:
        return "gradient" in self.switch

    def among(self, offered: Iterable[tuple[Mutation, Change]]) -> Change | None:
        """The change that makes this mistake: of the same words, else of the same spot."""
        spot: Change | None = None
        for other, change in offered:
            if other.words == self.words:
                return change
            if spot is None and self.name and other.spot == self.spot:
                spot = change
        return spot


def found(recording: Recording, steps: Sequence[Step]) -> Iterator[tuple[Mutation, Change]]:
    """Every mistake in a call whose replay gave `steps`."""
    recording.scored = any("softmax" in s.name or s.name == "scaled_dot_product_attention" for s in steps)
    here = around(recording, list(steps))
    count: dict[object, int] = collections.Counter()
    for change, named in _offered(recording, here):
        if _left_out(change):
            continue
        place, name = change.alterations[0][0][:2] if change.alterations and change.alterations[0][0] else (NOWHERE, "")
        phase = SPECIFIC if named or change.inner is not None else GENERIC
        text = RUNNING.sub("", change.text.replace("{value}", f"{change.start:g}"))
        words, spot = (change.switch, text), (change.switch, place, name, phase)
        mutation = Mutation(
            *(recording.path, *words, count[words], phase, place, name, count[spot]), rounding=bool(change.rounding)
        )
        count[words] += 1
        count[spot] += 1
        if name not in IN_TRAINING:
            yield mutation, change


def _offered(recording: Recording, here: Around) -> Iterator[tuple[Change, bool]]:
    """All changes, and whether they belong to this very function."""
    for change in changes(recording, here):
        yield change, change.named or (bool(change.rounding) and change.switch == "fast variance")
    for step in {(step.place, step.name): step for step in reversed(here.steps)}.values():
        for variant in extra(step):
            text = variant.description if step.name in variant.description else f"{step.name}: {variant.description}"
            target = (step.place, step.name, None)
            yield Change(variant.switch, text + step.where, ((target, variant.alter),)), True


def _left_out(change: Change) -> bool:
    """What adds nothing to the others: who sees the one sees the other.

    Rounding a step's result to float32 shows least of all roundings; a shift by one shows less than one by two; one
    call of several at a place stands for all; and of the results before a step, any may be taken for its operands.
    """
    if "leak" in change.switch:
        return not (change.switch == "float32 leak" and "result of" in change.text)
    if change.named or change.inner is not None:
        return False
    alone = any(target is not None and target[2] is not None for target, _ in change.alterations)
    return alone or change.family is not None or change.switch == "shifted by two" or "-> the result of" in change.text


def replay(recording: Recording, change: Change, *, gradients: bool = False) -> Sites:
    """What the call passes on and returns with this change."""
    sites, _ = recording.run(change.alterations, _given(change.inner), gradients=gradients)
    return sites


def _given(inner: Mapping | None) -> Mapping | None:
    return None if inner is None else dict(inner)
