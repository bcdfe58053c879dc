"""python -m tools.reliability.pairs [--pairs 5000] [--seed N] [--workers 2] [--resume] [--show SEED]

Random pairs of models, written in PyTorch and in flax by one generator, half of them with one mistake in flax's half,
handed to `parity`. A right pair has to be equal, a wrong one different wherever the mistake changes what the model
does on these inputs, which a comparison of its own decides. Exit code 1 if a pair passed or failed wrongly, or ended
in an exception; `--show SEED` repeats a pair, shrinks it while the fault stays, and prints it as an expression of
Python.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import gc
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from t2t_common.io import cli
from t2t_common.io.terminal import status
from tools.command import parse
from tools.reliability.grammar.draw import draw_tree
from tools.reliability.grammar.shrink import shrunk
from tools.reliability.grammar.tree import Tree
from tools.reliability.grammar.verdict import CRASH, CRASHED, FAULTS, NO_REFERENCE, Verdict, judge
from tools.reliability.record import RESULTS, write

BATCH = 20
"""Pairs that a process gets at once."""
LIFE = 10
"""Batches for each process before new ones take over: what JAX compiled stays in memory."""
LISTED = 100
"""Faults that the result lists."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line."""

    pairs: int = 5_000
    """How many pairs."""
    seed: int = 0
    """Of the first pair; the next ones follow."""
    workers: int = 2
    """Processes."""
    resume: bool = False
    """Continue what the file has, and try again what was a fault there."""
    show: int | None = None
    """Seed of a pair to repeat and to shrink."""
    tries: int = 60
    """How many smaller pairs are tried by --show."""
    json: Path = RESULTS / "pairs.json"
    """File for the result."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One pair and what came of it, ready for another process."""

    seed: int
    tree: Tree
    verdict: Verdict


def run_batch(seeds: Sequence[int]) -> list[Case]:
    """The pairs of these seeds."""
    return [run_case(seed) for seed in seeds]


def run_case(seed: int) -> Case:
    tree = draw_tree(seed)
    try:
        return Case(seed, tree, judge(tree))
    except Exception as error:
        raise RuntimeError(f"the pair of seed {seed} does not run by itself: {tree}") from error


def start_worker() -> None:
    """One thread, and all that was imported out of the way of the garbage collector, which `parity` calls often."""
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


def cases(seeds: range, workers: int) -> Iterator[Case]:
    """What came of every pair, in order; a pair that ends its process is a crash."""
    batches = [seeds[i : i + BATCH] for i in range(0, len(seeds), BATCH)]
    done = 0
    while done < len(batches):
        try:
            # Not by `max_tasks_per_child`, with which Python 3.11 waits for ever (python/cpython#115634).
            with _pool(workers) as pool:
                for found in pool.map(run_batch, batches[done : done + LIFE * workers]):
                    yield from found
                    done += 1
        except BrokenProcessPool:
            for seed in batches[done]:
                yield _alone(seed)
            done += 1


def _pool(workers: int) -> concurrent.futures.ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(workers, context, start_worker)


def _alone(seed: int) -> Case:
    """The pair of this seed in a process of its own."""
    try:
        with _pool(1) as pool:
            return pool.submit(run_case, seed).result()
    except BrokenProcessPool:
        verdict = Verdict("", CRASHED, CRASH, "the process ended", "the process ended")
        return Case(seed, draw_tree(seed), verdict)


@dataclasses.dataclass
class Tally:
    """All pairs so far, as tables."""

    seed: int
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    levels: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    nodes: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    faults: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def add(self, case: Case) -> None:
        tree, verdict = case.tree, case.verdict
        wrong = tree.mistake
        what = "right" if wrong is None else "wrong" if verdict.expected else "wrong in vain"
        what = "no reference" if verdict.said == NO_REFERENCE else what
        told = "told" if wrong and verdict.expected and not verdict.fault else ""
        keys = [key for key in ("pairs", what, told, verdict.fault) if key]
        for table, names in ((self.levels, {tree.level}), (self.nodes, {type(n).__name__ for n in tree.root.walk()})):
            for name in names:
                table.setdefault(name, Counter()).update(["pairs", *([verdict.fault] if verdict.fault else [])])
        if wrong:
            self.nodes[type(wrong[0]).__name__].update(key for key in (what, told) if key and key != "pairs")
        self.counts.update(keys)
        if verdict.fault:
            self.faults.append(_fault(case))

    def take_out(self, fault: dict[str, Any]) -> int:
        """Forgets one of `faults`, to be tried again; its seed."""
        tree = draw_tree(fault["seed"])
        self.counts.subtract(["pairs", fault["fault"], "right" if tree.mistake is None else "wrong"])
        names = {type(n).__name__ for n in tree.root.walk()}
        for row in (self.levels[tree.level], *(self.nodes[name] for name in names)):
            row.subtract(["pairs", fault["fault"]])
        if tree.mistake:
            self.nodes[type(tree.mistake[0]).__name__].subtract(["wrong"])
        self.faults.remove(fault)
        return fault["seed"]

    @property
    def figures(self) -> dict[str, Any]:
        """Ready for JSON."""
        counted = ("pairs", "right", "wrong", "wrong in vain", "no reference", "told", *FAULTS)
        return {
            **{name: self.counts[name] for name in counted},
            "seed": self.seed,
            "levels": {name: {key: row[key] for key in ("pairs", *FAULTS)} for name, row in self.levels.items()},
            "nodes": {
                name: {key: self.nodes[name][key] for key in counted[:1] + counted[2:]} for name in sorted(self.nodes)
            },
            "faults": self.faults[:LISTED],
        }

    @classmethod
    def of(cls, figures: dict[str, Any]) -> Tally:
        """From the figures of an earlier call."""
        counts = Counter({k: v for k, v in figures.items() if isinstance(v, int) and k not in ("seed", "seconds")})
        levels, nodes = ({name: Counter(row) for name, row in figures[table].items()} for table in ("levels", "nodes"))
        return cls(figures["seed"], counts, levels, nodes, list(figures["faults"]))


def _fault(case: Case) -> dict[str, Any]:
    verdict, tree = case.verdict, case.tree
    return {"seed": case.seed, "fault": verdict.fault, "kind": verdict.kind, "level": tree.level, "pair": repr(tree)}


def _same_fault(tree: Tree, verdict: Verdict) -> bool:
    """Whether `tree` shows the fault of `verdict`."""
    try:
        found = judge(tree)
    except Exception:
        return False
    return (found.fault, found.kind) == (verdict.fault, verdict.kind)


def show(seed: int, tries: int) -> Verdict:
    """Repeats one pair and prints it; shrunk, if something is wrong."""
    start_worker()
    case = run_case(seed)
    tree, verdict = case.tree, case.verdict
    print(f"{tree}\nexpected {verdict.expected or 'nothing: the mistake changes nothing here'}, said {verdict.said}")
    if verdict.fault:
        small = shrunk(tree, functools.partial(_same_fault, verdict=verdict), tries)
        print(f"{verdict.fault}: {verdict.kind}\n{verdict.detail}\n\nSmaller:\n{description(small)}")
    return verdict


def description(tree: Tree) -> str:
    """The pair as a program that repeats it."""
    return (
        "from tools.reliability.grammar.tree import *\n"
        "from tools.reliability.grammar.verdict import judge\n"
        f"tree = {tree}\n"
        "model, flax_model = tree.models()  # both halves, with the same weights; tree.inputs() are PyTorch's\n"
        "print(judge(tree))"
    )


def _earlier(options: Options) -> tuple[Tally, float]:
    """What the file has, and how long that took."""
    if not (options.resume and options.json.is_file()):
        return Tally(options.seed), 0.0
    found = json.loads(options.json.read_text(encoding="utf-8"))
    return Tally.of(found), found["seconds"]


def campaign(options: Options) -> Tally:
    """All pairs; the file is written after each batch."""
    tally, seconds = _earlier(options)
    start, saved = time.monotonic(), tally.counts["pairs"]
    for case in run_batch([tally.take_out(fault) for fault in list(tally.faults)]):
        tally.add(case)
        _save(options.json, tally, seconds + time.monotonic() - start)
    with status("pairs") as shown:
        for case in cases(range(tally.seed + saved, tally.seed + options.pairs), options.workers):
            tally.add(case)
            if case.verdict.fault:
                print(f"seed {case.seed}: {case.verdict.fault}: {case.verdict.kind}", flush=True)
            if tally.counts["pairs"] % BATCH == 0 or tally.counts["pairs"] == options.pairs:
                shown.update(f"{tally.counts['pairs']} of {options.pairs} pairs")
                _save(options.json, tally, seconds + time.monotonic() - start)
    return tally


def _save(path: Path, tally: Tally, seconds: float) -> None:
    command = f"python -m tools.reliability.pairs --pairs {tally.counts['pairs']} --seed {tally.seed}"
    write(path, command, tally.figures, seconds=seconds)


def main(args: Sequence[str]) -> int:
    options = parse(Options, args, "tools.reliability.pairs", __doc__)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if options.show is not None:
        return cli.FAILED if show(options.show, options.tries).fault else cli.OK
    with tempfile.TemporaryDirectory(prefix="pairs-", ignore_cleanup_errors=True) as programs:
        # What one process compiled, those after it need not.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", programs)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        tally = campaign(options)
    wrong = {name: tally.counts[name] for name in FAULTS}
    print(f"{tally.counts['pairs']} pairs: " + ", ".join(f"{count} {name}" for name, count in wrong.items()))
    return cli.FAILED if any(wrong.values()) else cli.OK


if __name__ == "__main__":
    sys.exit(cli.run(main))
