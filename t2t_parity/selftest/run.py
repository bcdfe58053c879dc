"""Run the mutations and the unmutated pairs, and evaluate the results of the checks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import jax
import torch

from parity.measure.gates import Gates
from parity.report.report import Report
from t2t_parity.selftest.backward import GRADIENT
from t2t_parity.selftest.fast_check import fast_check
from t2t_parity.selftest.foreign import MISTAKES
from t2t_parity.selftest.forward import FORWARD
from t2t_parity.selftest.modes import TRAIN
from t2t_parity.selftest.mutation import Mutation
from t2t_parity.selftest.optimisers import CORRECT, OPTIMISERS, SCHEDULES, Trial
from t2t_parity.selftest.pairs import PAIRS, fresh, make, rules_of, trains
from t2t_parity.selftest.twins import TWIN_MISTAKES
from t2t_parity.selftest.weights import CONVERSION, DATA

MUTATIONS: tuple[Mutation | Trial, ...] = (
    *FORWARD,
    *GRADIENT,
    *CONVERSION,
    *DATA,
    *TRAIN,
    *OPTIMISERS,
    *SCHEDULES,
    *MISTAKES,
)

MARGIN = 100.0
"""Minimum ratio of the error of a mistake to its gate; below, detection would depend on chance."""

MODULES_NAMED = 0.97
"""Minimum share of mistakes with a known module whose module is named."""

CAUSES_NAMED = 0.9
"""Minimum share of mistakes with a cause in the catalogue whose cause is named; no false cause is allowed."""

SEEDS = 40
"""Number of draws of weights and inputs per pair that must pass in float64."""

FULL_SEEDS = 4
"""Number of these draws for which gradients and float32 are also checked."""

TRAINED_SEEDS = 1
"""Number of these draws also checked in training mode if it differs; few, as it must be compiled."""

OPAQUE = ("forward", "gradient")
"""Groups of mutations that are also run with the JAX model as a function; the others need its modules."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of one mutation.

    Attributes:
        margin: Largest ratio of a failing float64 error to its gate; inf if the failure has no size.
        module, cause: Reported module and cause; None if none was reported.
        module_right, cause_right: Whether the report is correct; None if there is nothing to report.
        false_causes: Causes reported for any module that are not the mistake.
        raised: Exception raised in place of a report: a ValueError rejects the pair, any other is a crash.
    """

    mutation: str
    group: str
    caught: bool
    margin: float
    module: str | None
    module_right: bool | None
    cause: str | None
    cause_right: bool | None
    seconds: float
    false_causes: tuple[str, ...] = ()
    raised: str = ""

    @property
    def passed(self) -> bool:
        """Whether it was detected by `MARGIN` without a false cause; named modules and causes are judged in total."""
        return self.caught and self.margin >= MARGIN and not self.false_causes


@dataclasses.dataclass(frozen=True)
class Selftest:
    """All outcomes, and the unmutated runs that failed."""

    outcomes: tuple[Outcome, ...]
    false_alarms: tuple[str, ...]
    correct_runs: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether all mistakes were detected and named well enough, no correct run failed, and both kinds were run."""
        tried = bool(self.outcomes) and self.correct_runs > 0
        named = self.modules_named >= MODULES_NAMED and self.causes_named >= CAUSES_NAMED
        return tried and named and not self.false_alarms and all(outcome.passed for outcome in self.outcomes)

    @property
    def modules_named(self) -> float:
        """Share of mistakes with a known module whose module was named correctly; 1 if there are none."""
        return _share([outcome.module_right for outcome in self.outcomes])

    @property
    def causes_named(self) -> float:
        """Share of mistakes with a known cause whose cause was named correctly; 1 if there are none."""
        return _share([outcome.cause_right for outcome in self.outcomes])

    @property
    def false_causes(self) -> int:
        """Number of mistakes for which a false cause was reported."""
        return sum(bool(outcome.false_causes) for outcome in self.outcomes)

    def to_json(self) -> str:
        """Return all results as JSON; an infinite margin is the string "inf"."""
        shares = {"modules_named": self.modules_named, "causes_named": self.causes_named}
        payload = {"passed": self.passed, **shares, "false_causes": self.false_causes, **dataclasses.asdict(self)}
        payload["outcomes"] = [
            {**dataclasses.asdict(o), "margin": o.margin if math.isfinite(o.margin) else "inf", "passed": o.passed}
            for o in self.outcomes
        ]
        return json.dumps(payload, indent=1)


def _share(judged: Sequence[bool | None]) -> float:
    known = [right for right in judged if right is not None]
    return sum(known) / len(known) if known else 1.0


def run(
    mutations: Sequence[Mutation | Trial] = MUTATIONS,
    *,
    seeds: int = SEEDS,
    families: Sequence[str] = PAIRS,
    gates: Gates | None = None,
    workers: int = 1,
    opaque: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Selftest:
    """Check every mutation, and `seeds` unmutated draws of each pair in `families`.

    `workers` is the number of processes; with more than one, `mutations` must be among MUTATIONS and TWIN_MISTAKES.
    With `opaque`, the JAX models are given as functions, and only the mutations of the groups in OPAQUE are run.
    """
    start, tell = time.perf_counter(), progress or (lambda line: None)
    mutations = [mutation for mutation in mutations if not opaque or mutation.group in OPAQUE]
    # Mutations of one pair share compiled operations, so they stay in one task.
    together: dict[str, list[str]] = {}
    for mutation in mutations:
        together.setdefault(getattr(mutation, "pair", ""), []).append(mutation.name)
    pairs = sorted(
        {**together, **dict.fromkeys(families if seeds else ())}, key=lambda pair: -len(together.get(pair, ()))
    )
    tasks = [Task(pair, tuple(together.get(pair, ())), seeds * (pair in families), gates, opaque) for pair in pairs]
    outcomes: list[Outcome] = []
    correct: list[tuple[str, str | None]] = [] if opaque else [try_correct(trial) for trial in CORRECT]
    known = {mutation.name: mutation for mutation in mutations}
    for done, (found, unmutated) in enumerate(_results(tasks, known, workers), 1):
        outcomes += found
        correct += unmutated
        tell(f"{done} of {len(tasks)} parts, {len(outcomes)} mutations, {len(correct)} correct runs")
    order = list(known)
    outcomes.sort(key=lambda outcome: order.index(outcome.mutation))
    alarms = tuple(alarm for _, alarm in correct if alarm)
    return Selftest(tuple(outcomes), alarms, len(correct), round(time.perf_counter() - start, 1))


@dataclasses.dataclass(frozen=True)
class Task:
    """Names of mutations of one pair, and the number of unmutated draws of it."""

    pair: str
    mutations: tuple[str, ...]
    seeds: int
    gates: Gates | None
    opaque: bool = False


Result = tuple[list[Outcome], list[tuple[str, str | None]]]
"""Outcomes, and (name, false alarm or None) of each unmutated run."""


def _results(tasks: Sequence[Task], known: Mapping[str, Mutation | Trial], workers: int) -> Iterator[Result]:
    if workers == 1:
        yield from (_perform(task, known) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    with (
        tempfile.TemporaryDirectory(prefix="parity-selftest-", ignore_cleanup_errors=True) as programs,
        ProcessPoolExecutor(workers, context, _start_worker, (programs,)) as pool,
    ):
        for future in as_completed([pool.submit(_perform, task) for task in tasks]):
            yield future.result()


def _start_worker(programs: str) -> None:
    """Set one thread, and a separate cache for compiled programs, most of which a pair's mutations share."""
    torch.set_num_threads(1)
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp(dir=programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _perform(task: Task, known: Mapping[str, Mutation | Trial] | None = None) -> Result:
    known = known or {mutation.name: mutation for mutation in (*MUTATIONS, *TWIN_MISTAKES)}
    mutations = [known[name] for name in task.mutations]
    outcomes = [
        try_trial(m) if isinstance(m, Trial) else try_mutation(m, task.gates, opaque=task.opaque) for m in mutations
    ]
    return outcomes, [try_unmutated(task.pair, seed, task.gates, opaque=task.opaque) for seed in range(task.seeds)]


def try_mutation(mutation: Mutation, gates: Gates | None = None, *, opaque: bool = False) -> Outcome:
    """Insert the mistake into a new copy of its pair and check it."""
    start = time.perf_counter()
    try:
        report = _judged(mutation, gates, opaque)
    except Exception as error:  # a crash is not a detection; a ValueError rejects the pair
        return _raised(mutation, error, time.perf_counter() - start)
    module = report.first_divergence
    cause = next((cause.switch for cause in report.causes if cause.module == module), None)
    margin = _margin(report)
    return Outcome(
        mutation.name,
        mutation.group,
        caught=margin > 0,
        margin=margin,
        module=module,
        module_right=None if mutation.module is None else module == mutation.module,
        cause=cause,
        cause_right=None if mutation.cause is None else cause in mutation.true_causes,
        seconds=round(time.perf_counter() - start, 1),
        false_causes=tuple({c.switch: 0 for c in report.causes if c.switch not in mutation.true_causes}),
    )


def _judged(mutation: Mutation, gates: Gates | None, opaque: bool) -> Report:
    torch_model, jax_model, inputs = fresh(mutation.pair)
    with mutation.apply(jax_model) or contextlib.nullcontext():
        return fast_check(
            torch_model,
            jax_model,
            inputs,
            rules=rules_of(mutation.pair),
            backward=mutation.group == "gradient",
            training=mutation.group == "train",
            opaque=opaque,
            gates=gates,
        )


def _raised(mutation: Mutation, error: Exception, seconds: float) -> Outcome:
    """Return the outcome of an exception: a rejected pair counts as detected, a crash does not; nothing is named."""
    refused = isinstance(error, ValueError)
    return Outcome(
        mutation.name,
        mutation.group,
        caught=refused,
        margin=math.inf if refused else 0.0,
        module=None,
        module_right=None if mutation.module is None else False,
        cause=None,
        cause_right=None if mutation.cause is None else False,
        seconds=round(seconds, 1),
        raised=f"{type(error).__name__}: {error}",
    )


def try_trial(trial: Trial) -> Outcome:
    """Run a wrongly configured optimizer or schedule."""
    start = time.perf_counter()
    error, gate, cause = trial.run()
    switch = None if cause is None else cause.switch
    return Outcome(
        trial.name,
        trial.group,
        caught=error > gate,
        margin=error / gate,
        module=None,
        module_right=None,
        cause=switch,
        cause_right=None if trial.cause is None else switch == trial.cause,
        seconds=round(time.perf_counter() - start, 1),
        false_causes=() if switch in (None, trial.cause) else (str(switch),),
    )


def _margin(report: Report) -> float:
    """Return the largest ratio of a failing error to its gate (the float64 gate where equality must be exact).

    Rows of derivatives are ignored: a check has them only where a gradient of the loss is wrong.
    """
    exact = Gates().f64
    failed = [row for row in report.failures if row.precision != "float32" or row.kind == "weights"]
    failed = [row for row in failed if row.kind != "derivative"]
    if any(row.note and row.error == 0 for row in failed):
        return math.inf
    return max((row.error / (row.gate or exact) for row in failed), default=0.0)


def try_unmutated(
    family: str, seed: int, gates: Gates | None = None, *, opaque: bool = False
) -> tuple[str, str | None]:
    """Check a correct pair with weights and inputs drawn from `seed`; return (name, false alarm or None)."""
    name, every, training = (
        f"{family}, seed {seed}",
        seed < FULL_SEEDS,
        not opaque and seed < TRAINED_SEEDS and trains(family),
    )
    options: dict[str, Any] = {"rules": rules_of(family), "backward": every, "float32": every, "training": training}
    options["opaque"] = opaque
    try:
        report = fast_check(*make(family, seed), gates=gates, **options)
    except Exception as error:  # a correct pair that is rejected or crashes is also a false alarm
        return name, f"{name}: {type(error).__name__}: {error}"
    worst: Any = max(report.failures, key=lambda row: row.error, default=None)
    return name, None if report.passed else f"{name}: {worst.name} [{worst.kind}, {worst.mode}] {worst.error:.1e}"


def try_correct(trial: Trial) -> tuple[str, str | None]:
    """As `try_unmutated`, for a correctly configured optimizer or schedule."""
    error, gate, _ = trial.run()
    return trial.name, f"{trial.name}: {error:.1e}" if error > gate else None
