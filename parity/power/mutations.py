"""Mistakes that can be made in one call of a module: the changes of `parity.causes`, one at a time.

A mistake is identified by its description, so that the same one can be made on other inputs, in another precision, or
in the running model with gradients: the catalogue is queried again there, for the tensors of that call.
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
"""Mistakes specific to a function or to the results of inner modules; generic mistakes of any step."""

IN_TRAINING = ("dropout", "alpha_dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d")
"""Functions without effect in evaluation mode: see `parity.power.training`."""

RUNNING = re.compile(r" \(mutate\.py:\d+\)")
"""Place reported for PyTorch's own modules in a model with a mistake; removed, as it is not in the model's code."""

NOWHERE: Place = ("", 0, 0)


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One mistake in one module.

    Attributes:
        module: Dotted path of the module.
        switch, text: Kind and description, as in `Cause`.
        number: Index among the mistakes with equal switch and text.
        phase: One of PHASES.
        place, name: Place and function of the altered step.
        order: Index among the mistakes of this switch at that step.
        rounding: Whether it is the same function with other roundings.
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
        """Key that is equal for inputs of other sizes, where the text may differ."""
        return self.module, self.switch, self.place, self.name, self.phase, self.order

    @property
    def label(self) -> str:
        return self.text if self.number == 0 else f"{self.text}, form {self.number + 1}"

    @property
    def only_in_gradients(self) -> bool:
        return "gradient" in self.switch

    def among(self, offered: Iterable[tuple[Mutation, Change]]) -> Change | None:
        """Return the change that makes this mistake: the one with the same words, else with the same spot."""
        spot: Change | None = None
        for other, change in offered:
            if other.words == self.words:
                return change
            if spot is None and self.name and other.spot == self.spot:
                spot = change
        return spot


def found(recording: Recording, steps: Sequence[Step]) -> Iterator[tuple[Mutation, Change]]:
    """Yield all mistakes that are possible in a call whose replay gave `steps`."""
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
    """Yield all changes, and whether each is specific to the step's function."""
    for change in changes(recording, here):
        yield change, change.named or (bool(change.rounding) and change.switch == "fast variance")
    for step in {(step.place, step.name): step for step in reversed(here.steps)}.values():
        for variant in extra(step):
            text = variant.description if step.name in variant.description else f"{step.name}: {variant.description}"
            target = (step.place, step.name, None)
            yield Change(variant.switch, text + step.where, ((target, variant.alter),)), True


def _left_out(change: Change) -> bool:
    """Return whether a change is redundant, as a check that detects another change would also detect it.

    Rounding a step's result to float32 is the hardest rounding to detect; a shift by one is harder to detect than a
    shift by two; a change of all calls at a place represents that of a single one; and operands are not replaced by
    results of earlier steps, as any of these could be taken.
    """
    if "leak" in change.switch:
        return not (change.switch == "float32 leak" and "result of" in change.text)
    if change.named or change.inner is not None:
        return False
    alone = any(target is not None and target[2] is not None for target, _ in change.alterations)
    return alone or change.family is not None or change.switch == "shifted by two" or "-> the result of" in change.text


def replay(recording: Recording, change: Change, *, gradients: bool = False) -> Sites:
    """Return the inputs of inner modules and the outputs of the call with this change."""
    sites, _ = recording.run(change.alterations, _given(change.inner), gradients=gradients)
    return sites


def _given(inner: Mapping | None) -> Mapping | None:
    return None if inner is None else dict(inner)
