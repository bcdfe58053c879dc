"""What is said about a run: in the terminal, in metrics.jsonl, to TensorBoard and to Weights & Biases."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from t2t_common.workdir.writers import JsonLines, require
from t2t_jax.training.profile import TRACED_STEPS, WARM_UP_STEPS, LoggingOptions
from t2t_jax.training.reporter import Reporter, TrainingDivergedError


def drive(workdir: Path, *, steps: range = range(1, 7), logging: LoggingOptions | None = None, **options: Any) -> None:
    """A run of `steps` with loss 1 / step."""
    first = {"first_step": steps[0] - 1, "last_step": steps[-1], "batch_size": 8, "log_every": 2}
    with Reporter(workdir, **{**first, **options}, logging=logging) as reporter:
        for step in steps:
            with reporter.waiting():
                pass
            reporter.step(step, {"loss": jnp.asarray(1 / step), "grad_norm": jnp.ones(())}, lr=0.5, epoch=0)
        loss = reporter.flush()
        reporter.line("epoch", {"step": steps[-1], "epoch": 0, "epoch_loss": loss, "names": ["a"]})


def lines(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_the_lines_of_metrics_jsonl(tmp_path: Path):
    drive(tmp_path, logging=LoggingOptions(peak_tflops=1e-6), flops_per_image=100)
    *steps, epoch = lines(tmp_path)
    assert [line["step"] for line in steps] == [2, 4, 6]
    for line in steps:
        assert line.keys() == {
            *("step", "epoch", "loss", "grad_norm", "lr"),
            *("images_per_second", "data_wait", "mfu"),
        }
        assert line["loss"] == pytest.approx(1 / line["step"])
        assert 0 <= line["data_wait"] <= 1
        assert line["mfu"] == pytest.approx(line["images_per_second"] * 100 / (1e6 * jax_devices()))
    assert epoch["epoch_loss"] == pytest.approx(sum(1 / step for step in range(1, 7)) / 6)


def jax_devices() -> int:
    import jax

    return jax.device_count()


def test_no_mfu_on_a_cpu(tmp_path: Path):
    drive(tmp_path, flops_per_image=100)
    assert not any("mfu" in line for line in lines(tmp_path))


def test_a_continued_run_writes_its_lines_again(tmp_path: Path):
    drive(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while it wrote
    drive(tmp_path, steps=range(4, 9))
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 8, 8]


def test_what_is_not_finite_ends_the_run(tmp_path: Path):
    with Reporter(tmp_path, first_step=0, last_step=9, batch_size=8, log_every=1) as reporter:
        reporter.step(1, {"loss": jnp.ones(()), "grad_norm": jnp.ones(())})
        reporter.step(2, {"loss": jnp.ones(()), "grad_norm": jnp.asarray(math.inf)})
        with pytest.raises(TrainingDivergedError, match="step 2: grad_norm is inf: lower --lr") as caught:
            reporter.step(3, {"loss": jnp.asarray(math.nan), "grad_norm": jnp.asarray(math.nan)})
    assert caught.value.step == 2
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_a_warning_is_said_once_and_stands_on_the_page_until_it_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with Reporter(tmp_path, first_step=0, last_step=9, batch_size=8, log_every=1) as reporter:
        reporter.warn({"a": "[red]first", "b": "secondly", "c": None})
        reporter.warn({"a": "[red]first, later", "b": None})
    assert capsys.readouterr().out == "warning: [red]first\nwarning: secondly\n"
    page = (tmp_path / "report.html").read_text()
    assert page.count("<li>[red]first, later</li>") == 1
    assert "secondly" not in page
    with Reporter(tmp_path, first_step=4, last_step=9, batch_size=8, log_every=1) as reporter:
        reporter.warn({"a": "[red]again"}, again=True)
        reporter.warn({"a": "[red]again"}, again=True)
    assert capsys.readouterr().out.count("warning: [red]again\n") == 2


def test_the_figures_below_the_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the output for a terminal
    monkeypatch.setenv("COLUMNS", "160")
    drive(tmp_path, logging=LoggingOptions(peak_tflops=1.0), flops_per_image=100)
    shown = capsys.readouterr().out
    for text in ("6/6", "loss 0.1667", "lr 5.00e-01", "gradient 1", "images/s", "MFU", "waits for data"):
        assert text in shown, text


def test_off_a_terminal_there_are_a_start_and_a_line_every_so_many_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """In a log file, a pipe, a notebook: the bar is not there. In a terminal it is, and no such lines."""
    with Reporter(tmp_path, first_step=0, last_step=6, batch_size=8, log_every=2) as reporter:
        reporter.start(["model     of [brackets]"])
        for step in range(1, 7):
            reporter.step(step, {"loss": jnp.asarray(1 / step), "grad_norm": jnp.ones(())}, lr=0.5)
        reporter.flush()
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "model     of [brackets]"
    assert [line.split("   loss")[0].split() for line in lines] == [["step", f"{step}/6"] for step in (2, 4, 6)]
    assert [line.split("loss ")[1].split()[0] for line in lines] == ["0.5000", "0.2500", "0.1667"]


def test_a_run_whose_reader_is_gone_goes_on(tmp_path: Path):
    """As `python -m t2t_torch.train ... | tee log` when SIGTERM reaches both: it has to save, and that is success."""
    code = f"""
import os, signal, sys
from pathlib import Path
from t2t_common.io import cli
from t2t_common.run.reporter import Reporter
from t2t_common.io.terminal import say

def main(args):
    input()
    with Reporter(Path({str(tmp_path)!r}), first_step=0, last_step=2, batch_size=1, log_every=1) as reporter:
        for step in (1, 2):
            reporter.step(step, {{"loss": 1.0}})
        reporter.flush()
    say("stopped by SIGTERM, saved")
    return cli.OK

cli.run_and_end(main)
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_profile_holds_the_steps_after_the_warm_up(tmp_path: Path):
    drive(tmp_path, steps=range(21, 34), logging=LoggingOptions(profile=True))
    (path,) = (tmp_path / "profile").rglob("*.xplane.pb")
    content = path.read_bytes()
    assert b"StepTraceAnnotation" in content or b"train" in content
    assert WARM_UP_STEPS + TRACED_STEPS < 12


def test_a_profile_of_a_run_that_ends_in_between(tmp_path: Path):
    drive(tmp_path, steps=range(1, 6), logging=LoggingOptions(profile=True))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


# ---- TensorBoard ----


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads from `folder`: records of length, checksum, event, checksum."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
            at += length + 16
    return found


def test_tensorboard_gets_every_figure(tmp_path: Path):
    drive(tmp_path, logging=LoggingOptions(log=("tensorboard",)))
    found = scalars(tmp_path / "tensorboard")
    assert found.keys() == {"loss", "grad_norm", "lr", "epoch", "epoch_loss", "images_per_second", "data_wait"}
    assert found["loss"] == [(step, pytest.approx(1 / step)) for step in (2, 4, 6)]
    assert len(lines(tmp_path)) == 4


# ---- Weights & Biases ----


class Run:
    def __init__(self, **options: Any) -> None:
        self.options, self.logged, self.exit_code = options, [], None  # type: ignore[var-annotated]
        self.metrics: list[tuple[str, str]] = []

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self, *, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that a module with wandb's calls has begun."""
    begun: list[Run] = []

    def init(**options: Any) -> Run:
        begun.append(Run(**options))
        return begun[-1]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))  # type: ignore[arg-type]
    return begun


def test_wandb_gets_every_figure_and_the_recipe(tmp_path: Path, runs: list[Run]):
    drive(tmp_path, logging=LoggingOptions(log=("wandb",)), config={"model": "m"})
    (run,) = runs
    assert run.options["config"] == {"model": "m"}
    assert (run.options["name"], run.options["dir"]) == (tmp_path.name, str(tmp_path))
    assert run.metrics == [("*", "step")]
    assert [values["step"] for values in run.logged] == [2, 4, 6, 6]
    assert run.logged[0]["loss"] == 0.5
    assert run.logged[-1].keys() == {"step", "epoch", "epoch_loss"}
    assert run.exit_code == 0


def test_a_continued_run_goes_on_in_the_same_wandb_run(tmp_path: Path, runs: list[Run]):
    drive(tmp_path, logging=LoggingOptions(log=("wandb",)))
    drive(tmp_path, logging=LoggingOptions(log=("wandb",)), steps=range(5, 9))
    assert runs[0].options["id"] == runs[1].options["id"]
    assert {run.options["resume"] for run in runs} == {"allow"}


def test_wandb_hears_of_a_failure(tmp_path: Path, runs: list[Run]):
    with (
        pytest.raises(KeyError),
        Reporter(
            tmp_path, first_step=0, last_step=1, batch_size=1, log_every=1, logging=LoggingOptions(log=("wandb",))
        ),
    ):
        raise KeyError
    assert runs[0].exit_code == 1


@pytest.mark.parametrize(("service", "package"), [("wandb", "wandb"), ("tensorboard", "tensorboardX")])
def test_a_missing_package_is_named(service: Any, package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    for attempt in (lambda: require(service), lambda: LoggingOptions(log=(service,))):
        with pytest.raises(ValueError, match=f"pip install {package}"):
            attempt()


def test_neither_is_imported_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for package in ("wandb", "tensorboardX"):
        monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    drive(tmp_path)
    JsonLines(tmp_path / "other.jsonl", first_step=0).close(None)


def test_a_peak_has_to_be_positive():
    with pytest.raises(ValueError, match="peak_tflops must be positive and finite, got 0"):
        LoggingOptions(peak_tflops=0)
