"""`verify_port`: the verdict on a port's file, given a specification's file."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity.carry.arrays import first_line
from parity.measure.gates import Row
from parity.verify.build import PORT
from parity.verify.judge import NONSENSE, Judge, alignment, described, inner
from parity.verify.run import Answer, Limits, UnjudgeableError, ask, printable
from parity.verify.spec import Spec, content_of
from parity.verify.trials import Tensors, Trial, design_of, drawn, narrow, refuse
from parity.verify.verdict import DIFFERENT, EQUAL, NOT_ASKED, UNJUDGED, Change, Part, Verdict

TRIALS = 3


def verify_port(
    spec: Path | str,
    port: Path | str,
    *,
    trials: int = TRIALS,
    limits: Limits | None = None,
    locate: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Verdict:
    """Return the verdict on a JAX port that nobody has to trust.

    The port's file runs in a confined process that sees names, shapes and types, and turns it into programs; another
    process, without the file, runs the programs on secret weights and inputs. Nothing that the port's code does can
    depend on a number, and the numbers are judged here.

    Args:
        spec: A Python file with `reference()` and `inputs(seed)`; it is trusted, and runs in this process.
        port: A Python file with `port(weights)`, which returns a function of the inputs, or with `port()`, which
            returns a `flax.nnx.Module` with PyTorch's names.
        trials: Number of seeds; each has its own weights, inputs and shapes.
        limits: Of every process.
        locate: Whether to look for the line to change, if the port is different.
        progress: Function called with a line of text before each stage.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: `trials` is not positive.
    """
    if trials < 1:
        raise ValueError(f"trials has to be positive, not {trials}")
    content_of(Path(spec))
    run = _Verification(Path(spec), Path(port), trials, limits or Limits(), locate, progress or (lambda stage: None))
    return run.verdict()


@dataclasses.dataclass
class _Verification:
    spec_path: Path
    port_path: Path
    count: int
    limits: Limits
    locate: bool
    tell: Callable[[str], None]

    def __post_init__(self) -> None:
        self.start = time.monotonic()
        self.source = content_of(self.port_path)  # from here on, changes of the file have no effect
        self.files = {
            "spec": {"file": self.spec_path.name, "sha256": hashlib.sha256(content_of(self.spec_path)).hexdigest()},
            "port": {"file": self.port_path.name, "sha256": hashlib.sha256(self.source).hexdigest()},
        }
        self.parts = {"spec": Part(), "numeric": Part(), "gradients": Part(), "training": Part(NOT_ASKED)}
        self.trials: list[Trial] = []
        self.isolation: tuple[str, ...] = ()
        self.change: Change | None = None

    def verdict(self) -> Verdict:
        stage = "spec"
        try:
            self.tell("the reference")
            self._prepare()
            stage = "numeric"
            self.tell("tracing the port")
            programs = self._build()
            self.tell("its outputs")
            self._numeric(programs)
            if self.parts["numeric"].status == EQUAL and self.spec.gradients:
                stage = "gradients"
                self.tell("its gradients")
                self._gradients(programs)
        except UnjudgeableError as error:
            self.parts[stage] = Part(UNJUDGED, note=str(error))
            if stage != "spec" and error.line is not None:
                self.change = Change(error.line, why=str(error)[:300])
            return self._result(UNJUDGED, str(error))
        failed = [name for name, part in self.parts.items() if part.status == DIFFERENT]
        if not failed:
            return self._result(EQUAL, f"equal on {len(self.trials)} secret trials")
        if self.locate:
            self.tell("where it differs")
            self.change = self._located(failed[0]) or self.change
        part = self.parts[failed[0]]
        what = {"numeric": "the outputs differ", "gradients": "the gradients differ"}[failed[0]]
        return self._result(DIFFERENT, f"{what}: {part.note}" if part.note else what)

    def _result(self, verdict: str, reason: str) -> Verdict:
        trials = [
            {"seed": trial.seed, "inputs": [list(x.shape) for x in trial.arrays[:8]]} for trial in self.trials[:5]
        ]
        return Verdict(
            verdict,
            printable(reason, 400),
            **self.parts,
            files=self.files,
            change=self.change,
            trials=trials,
            isolation=self.isolation,
            seconds=time.monotonic() - self.start,
        )

    # ---- the reference ----

    def _prepare(self) -> None:
        self.spec = Spec.load(self.spec_path)
        if not self.spec.gradients:
            self.parts["gradients"] = Part(NOT_ASKED)
        self.tensors = Tensors.of(self.spec.model)
        self.trials = drawn(self.spec, self.count)
        name = self.spec_path.name
        try:
            self.design = design_of(self.trials[0])
            self.judges = [Judge(trial, self.tensors, self.design) for trial in self.trials]
            for judge in self.judges:
                refuse(self.spec, judge.trial, judge.oracle, judge.again())
        except UnjudgeableError:
            raise
        except Exception as error:
            text = f"{name}: the reference does not run: {type(error).__name__}: {first_line(error)}"
            raise UnjudgeableError(text) from error
        shapes = {tuple(x.shape for x in trial.arrays) for trial in self.trials}
        note = "all trials have the same shapes" if len(shapes) == 1 and len(self.trials) > 1 else ""
        self.parts["spec"] = Part("ok", note=note)

    # ---- the port ----

    def _build(self) -> Answer:
        """Let the port be traced; return its programs and the names of its outputs.

        Raises:
            UnjudgeableError: It cannot be.
        """
        self.ledger = self._paired() if _takes_nothing(self.source) else None
        first = [next(j for j, other in enumerate(self.trials) if trial.alike(other)) for trial in self.trials]
        asked = [self.trials[j] for j in dict.fromkeys(first)]  # trials of the same shapes share programs
        built = self._ask("build", {**self._known(), "trials": [trial.described() for trial in asked]}, {})
        found = dict(zip(dict.fromkeys(first), described(built.meta.get("outputs"), asked), strict=True))
        self.described, self.first = [found[j] for j in first], first
        return built

    def _known(self) -> dict[str, Any]:
        """Return what the port's process may know: names, shapes and types."""
        return {
            "weights": self.tensors.kinds,
            "aliases": self.tensors.aliases,
            "trained": self.tensors.trained,
            "ledger": getattr(self, "ledger", None),
            "gradients": self.spec.gradients,
            "narrow": narrow(self.design.ours),
            "scalars": sorted(x for x in self.design.scalars if np.isfinite(x)),
        }

    def _paired(self) -> list[Any]:
        state = {name: self.tensors.kinds[name] for name in self.tensors.state}
        found = self._ask("pair", {"state": state, "aliases": self.tensors.aliases}, {}, torch=True).meta.get("ledger")
        if not isinstance(found, list):
            raise UnjudgeableError(NONSENSE)
        return found

    def _ask(
        self, role: str, meta: Mapping[str, Any], given: Mapping[str, np.ndarray], *, torch: bool = False
    ) -> Answer:
        return ask(role, meta, given, self.limits, files={PORT: self.source}, torch=torch)

    # ---- outputs ----

    def _numeric(self, programs: Answer) -> None:
        self.outputs: list[dict[str, dict[str, np.ndarray]]] = []
        self.alignments = []
        for i, judge in enumerate(self.judges):
            found, problem = alignment(judge.oracle, self.described[i]["float64"])
            if problem:
                self.parts["numeric"] = Part(DIFFERENT, note=printable(problem, 300))
                return
            self.alignments.append(found)
        runs = [(i, precision) for i, trial in enumerate(self.trials) for precision in trial.precisions]
        results = self._run(programs, "forward", runs, {})
        self.outputs = [{} for _ in self.trials]
        for (i, precision), values in zip(runs, results, strict=True):
            self.outputs[i][precision] = self._named(i, precision, values)
        rows: list[Row] = []
        for judge, own in zip(self.judges, self.outputs, strict=True):
            rows += judge.forward(own)
        self.parts["numeric"] = Part.of(rows)

    def _named(self, i: int, precision: str, values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs of the port by PyTorch's names.

        Raises:
            UnjudgeableError: They are not of the shapes that were announced.
        """
        theirs = [name for name, *_ in self.described[i][precision]]
        held = dict(zip(theirs, values, strict=False))
        found = {name: held.get(other) for name, other in self.alignments[i].items()}
        wanted = self.judges[i].oracle
        if any(x is None or x.shape != wanted[name].shape for name, x in found.items()):
            raise UnjudgeableError("its program returns other arrays than announced")
        return found  # type: ignore[return-value]

    def _run(
        self, programs: Answer, way: str, runs: Sequence[tuple[int, str]], more: Mapping[int, Sequence[np.ndarray]]
    ) -> list[list[np.ndarray]]:
        """Run programs on the weights and inputs of their trials, and on `more` arrays by trial.

        The process has the programs and the numbers, and not the port's file.
        """
        given: dict[str, np.ndarray] = {}
        asked = []
        for i, precision in runs:
            name = f"{self.first[i]}/{precision}/{way}"
            if name not in programs.arrays:
                raise UnjudgeableError(NONSENSE)
            given[name] = programs.arrays[name]
            trial = self.trials[i]
            arrays = [*trial.weights(self.tensors).values(), *trial.arrays, *more.get(i, ())]
            given |= {f"{i}:{j}": array for j, array in enumerate(arrays)}
            names = [f"{i}:{j}" for j in range(len(arrays))]
            asked.append({"program": name, "precision": precision, "arguments": names})
        answer = ask("evaluate", {"runs": asked}, given, self.limits)
        self.isolation = answer.isolation
        results: list[list[np.ndarray]] = [[] for _ in runs]
        for k, own in enumerate(results):
            while f"{k}/{len(own)}" in answer.arrays:
                own.append(answer.arrays[f"{k}/{len(own)}"])
        return results

    # ---- gradients ----

    def _gradients(self, programs: Answer) -> None:
        """Compare the gradients for cotangents that are drawn only now."""
        runs = [(i, precision) for i, trial in enumerate(self.trials) for precision in trial.precisions]
        more = {}
        for i, judge in enumerate(self.judges):
            drawn_now = judge.draw_cotangents(secrets.randbits(31))
            back = {other: name for name, other in self.alignments[i].items()}
            theirs = [back[name] for name, *_ in self.described[i]["float64"]]
            more[i] = [drawn_now[name].conj() for name in theirs if name in drawn_now]
        results = self._run(programs, "backward", runs, more)
        rows: list[Row] = []
        for i, judge in enumerate(self.judges):
            own = {}
            for (j, precision), values in zip(runs, results, strict=True):
                if j == i:
                    own[precision] = (*self._gradient(i, values), self.outputs[i][precision])
            rows += judge.gradients(own)
        self.parts["gradients"] = Part.of(rows)
        if self.parts["gradients"].status == DIFFERENT and self._contradicts(programs, results[0]):
            text = "the port's derivative is not that of its own outputs (finite differences): stop_gradient, a "
            text += "custom derivative, or rounding inside"
            self.parts["gradients"] = dataclasses.replace(self.parts["gradients"], note=text)
            line = programs.meta.get("altered")
            self.change = Change(line, why=text) if type(line) is int else None

    def _gradient(self, i: int, values: Sequence[np.ndarray]) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """Return the port's gradients of weights, by name, and inputs.

        Raises:
            UnjudgeableError: They are not of the shapes of the weights and inputs.
        """
        names, inputs = self.tensors.trained, [x for x in self.trials[i].arrays if x.dtype.kind in "fc"]
        shapes = [tuple(self.tensors.kinds[name][1]) for name in names] + [x.shape for x in inputs]
        if [x.shape for x in values] != shapes:
            raise UnjudgeableError("its program returns other arrays than announced")
        found = [x.conj() for x in values]
        return dict(zip(names, found, strict=False)), found[len(names) :]

    def _contradicts(self, programs: Answer, gradient: Sequence[np.ndarray]) -> bool:
        """Return whether the port's gradient of the first trial differs from finite differences of its own outputs."""
        trial, judge = self.trials[0], self.judges[0]
        draw = np.random.default_rng(trial.seed)
        weights, slopes = trial.weights(self.tensors), iter(gradient)
        held = {**weights, **{f"/{i}": x for i, x in enumerate(trial.arrays)}}
        moving = [*self.tensors.trained, *(f"/{i}" for i, x in enumerate(trial.arrays) if x.dtype.kind in "fc")]
        ways = {}
        for name in moving:
            z = draw.standard_normal(held[name].shape)
            ways[name] = z * (np.sqrt(np.mean(np.abs(held[name]) ** 2)) or 1.0)
        slope = sum(inner(next(slopes).conj(), ways[name].astype(held[name].dtype)) for name in moving)
        step, losses = 1e-5, []
        for sign in (1, -1):
            moved = {
                name: x.astype(np.result_type(x, np.float64)) + sign * step * ways[name] if name in ways else x
                for name, x in held.items()
            }
            found = self._run_on(programs, list(moved.values()))
            losses.append(sum(inner(judge.cotangents[name], found[name]) for name in judge.cotangents))
        measured = (losses[0] - losses[1]) / (2 * step)
        return abs(measured - slope) > 1e-4 * max(abs(measured), abs(slope))

    def _run_on(self, programs: Answer, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs of the first trial's program on other weights and inputs."""
        name = "0/float64/forward"
        given = {name: programs.arrays[name]} | {str(j): x for j, x in enumerate(arrays)}
        run = {"program": name, "precision": "float64", "arguments": [str(j) for j in range(len(arrays))]}
        answer = ask("evaluate", {"runs": [run]}, given, self.limits)
        values = [answer.arrays[f"0/{j}"] for j in range(sum(key.startswith("0/") for key in answer.arrays))]
        return self._named(0, "float64", values)

    # ---- the place ----

    def _located(self, part: str) -> Change | None:
        """Return the place of the first difference, as a confined process finds it; it cannot change the verdict."""
        trial = self.trials[0]
        given = {f"weight/{name}": x for name, x in trial.weights(self.tensors).items()}
        given |= {f"input/{i}": x for i, x in enumerate(trial.arrays)}
        meta = {**self._known(), "trial": trial.described(), "spec": str(self.spec_path.resolve())}
        meta |= {"state": self.tensors.state, "level": "gradients" if part == "gradients" else "forward"}
        meta["paths"] = paths = [path for path in sys.path if path]
        readable = [str(self.spec_path.resolve().parent), *paths]
        try:
            found = ask(
                "locate", meta, given, self.limits, files={PORT: self.source}, readable=readable, torch=True
            ).meta
        except UnjudgeableError as error:
            return dataclasses.replace(self.change or Change(), why=f"the place is not known: {error}"[:300])
        lines = found.get("lines")
        most = self.source.count(b"\n") + 1
        kept = [x for x in lines if type(x) is int and 0 < x <= most] if isinstance(lines, list) else []
        kept = list(dict.fromkeys(kept))
        modules = dict(self.spec.model.named_modules())
        module = str(found.get("module", "")).partition("#")[0]
        change = Change(
            kept[0] if kept else None,
            tuple(kept[1:5]),
            module if module in modules else "",
            printable(found.get("reference", ""), 80),
            printable(found.get("why", ""), 300),
        )
        if self.change is not None and self.change.line and part == "gradients":
            return dataclasses.replace(self.change, module=change.module)
        return change


def _takes_nothing(source: bytes) -> bool:
    """Return whether the port is a function without arguments, which returns a module.

    Raises:
        UnjudgeableError: The file is no Python.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        raise UnjudgeableError(f"the port's file is no Python: {error}", line) from None
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "port"]
    if not found:
        return False
    given = found[-1].args
    return not (given.args or given.posonlyargs or given.kwonlyargs or given.vararg or given.kwarg)
