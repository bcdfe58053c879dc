"""python -m tools.reliability.power [--each N] [--level LEVEL] [--only NAMES] [--json FILE]

Whether `parity.power` tells the truth: what it calls seen must fail, what it calls blind must pass. Each mistake is
made in a copy of the PyTorch model, and `parity.check` compares that with the right JAX port: the same comparison as
of the right PyTorch model with a wrong port, sides exchanged. All that is blind or no difference is made, and of what
is seen so many of each switch. Not made: roundings to a shorter format, as `check` leaves a model's own casts out; and
results of an inner module read otherwise, which in that copy would be the inner module's mistake.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from parity.carry.rules import Rules
from parity.judgement.rows import pairing_rows
from parity.measure.gates import Gates
from parity.power.measure import search_of
from parity.power.mutate import NotMadeError, mutated
from parity.proof.stages import Proof
from parity.report.power_report import BLIND, SAME, SEEN
from t2t_common.io import cli
from t2t_parity.pair import make_pair
from t2t_parity.selftest.foreign import FOREIGN
from tools.command import parse
from tools.reliability.record import RESULTS, write


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    each: int = 2
    """So many seen mistakes of each switch are made."""
    most: int = 60
    """At most so many that are blind or no difference, of each pair."""
    level: Literal["forward", "gradients", "train"] = "gradients"
    """That of the check."""
    only: tuple[str, ...] = ()
    """The pairs; all by default."""
    budget: float = 1000.0
    """Of `power`, in forward passes."""
    json: Path = RESULTS / "power.json"
    """File for the figures."""


def t2t() -> tuple[Any, Any, Any]:
    """T2T-ViT-14 in small: all its kinds of modules, two blocks."""
    arguments: dict[str, Any] = {
        "img_size": 32,
        "num_classes": 5,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
        "token_dim": 8,
    }
    return (*make_pair("t2t_vit_14", **arguments), np.random.RandomState(0).standard_normal((1, 3, 32, 32)))


def gpt() -> tuple[Any, Any, Any]:
    """Two sentences of five words."""
    return FOREIGN["gpt"].make(0)


def bert() -> tuple[Any, Any, Any]:
    """Sentences without padding: the mask is all ones."""
    torch_model, jax_model, (ids, mask) = FOREIGN["bert"].make(0)
    return torch_model, jax_model, (np.maximum(ids, 1), np.ones_like(mask))


PAIRS: dict[str, Callable[[], tuple[Any, Any, Any]]] = {"t2t_vit_14": t2t, "gpt": gpt, "bert": bert}


def rules_of(name: str) -> Any:
    return FOREIGN[name].rules if name in FOREIGN else Rules()


@dataclasses.dataclass
class Outcome:
    """What came of one pair; `wrong` says each prediction that did not hold."""

    mistakes: int = 0
    seen: int = 0
    blind: int = 0
    same: int = 0
    made: int = 0
    held: int = 0
    not_made: int = 0
    seconds: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)


def validate(
    torch_model: torch.nn.Module, jax_model: Any, inputs: Any, rules: Any, options: Options, tell: Callable[[str], None]
) -> Outcome:
    """Predicts with `power`, then makes the mistakes."""
    start = time.perf_counter()
    search = search_of(torch_model, inputs, level=options.level, budget=options.budget)
    report = search.run()
    seen, blind, same = (report.count(status) for status in (SEEN, BLIND, SAME))
    outcome = Outcome(seen + blind + same, seen, blind, same)
    for finding in list(chosen(list(search.findings.values()), options.each, options.most)):
        mutation = finding.mutation
        tell(f"{finding.status}: {mutation.module} {mutation.text}")
        differs = made(torch_model, jax_model, inputs, rules, mutation, search.whole.paired, options.level)
        if differs is None:
            outcome.not_made += 1
            continue
        outcome.made += 1
        outcome.held += differs == finding.seen
        if differs != finding.seen:
            outcome.wrong.append(
                f"{finding.status}, and {'fails' if differs else 'passes'}: {mutation.module}: {mutation.label}"
            )
    outcome.seconds = round(time.perf_counter() - start)
    return outcome


def chosen(findings: Sequence[Any], each: int, most: int) -> Iterator[Any]:
    """All that is not seen, up to `most`, and `each` of every switch of what is."""
    count: dict[str, int] = collections.Counter()
    for finding in findings:
        if "leak" in finding.mutation.switch or not finding.mutation.name:
            continue
        kind = finding.mutation.switch if finding.seen else ""
        count[kind] += 1
        if count[kind] <= (each if kind else most):
            yield finding


def made(
    torch_model: torch.nn.Module, jax_model: Any, inputs: Any, rules: Any, mutation: Any, paired: Any, level: str
) -> bool | None:
    """Whether `check` tells the mutated model from the right port; None if the mistake cannot be made there."""
    try:
        return differs(mutated(torch_model, mutation, paired), jax_model, inputs, rules, level)
    except NotMadeError:
        return None
    except ValueError:  # the models cannot even be compared
        return True


def differs(torch_model: torch.nn.Module, jax_model: Any, inputs: Any, rules: Any, level: str) -> bool:
    """Whether a row of `check` fails. Its stages one by one, up to the first that does, and no causes."""
    proof = Proof.of(torch_model, jax_model, inputs, rules, Gates())
    loss = proof.default_loss
    stages: list[Callable[[], Sequence[Any]]] = [lambda: pairing_rows(proof.pairing), proof.forward]
    if level != "forward" and loss is not None:
        stages.append(lambda: proof.gradients(loss))
    if level == "train":
        stages.append(lambda: proof.training(None)[0])
    return any(not row.passed for stage in stages for row in stage())


def main(args: Sequence[str]) -> int:
    options = parse(Options, args, "tools.reliability.power", __doc__)
    outcomes: dict[str, dict[str, Any]] = {}
    start = time.perf_counter()
    for name in options.only or tuple(PAIRS):
        if name not in PAIRS:
            raise ValueError(f"no pair is called {name!r}: choose from {', '.join(PAIRS)}")
        torch_model, jax_model, inputs = PAIRS[name]()
        outcome = validate(torch_model, jax_model, inputs, rules_of(name), options, lambda line: None)
        print(f"{name}: {outcome.held} of {outcome.made} predictions held", *outcome.wrong, sep="\n  ", flush=True)
        outcomes[name] = {key: value for key, value in dataclasses.asdict(outcome).items() if key != "wrong"}
        outcomes[name]["wrong"] = "; ".join(outcome.wrong)
        command = (
            f"python -m tools.reliability.power --each {options.each} --most {options.most} --level {options.level}"
        )
        write(options.json, command, {"pairs": outcomes}, seconds=time.perf_counter() - start)
    return cli.OK if all(o["held"] == o["made"] for o in outcomes.values()) else cli.FAILED


if __name__ == "__main__":
    sys.exit(cli.run(main))
