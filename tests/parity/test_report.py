"""The verdict, the first divergence, and JSON that any reader takes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parity import Ledger, Report, Row
from parity.report import SCHEMA_VERSION, Trajectory, around, read_report, tightness

INF, NAN = float("inf"), float("nan")
LAYERS = (("a.fc", "Linear"), ("a", "Block"), ("b.fc", "Linear"), ("b", "Block"), ("", "Net"))


def row(name: str, error: float = 0.0, *, kind: str = "layer", mode: str = "forced", **options: Any) -> Row:
    return Row(name, kind, mode, options.pop("precision", "float64"), error, 1e-13, **options)


def report(*rows: Row, layers: tuple[tuple[str, str], ...] = LAYERS) -> Report:
    return Report(rows, Ledger(()), layers, environment={})


RIGHT = [row(name) for name, _ in LAYERS]


def test_passes_only_if_something_was_compared():
    assert report(*RIGHT).passed
    assert not report().passed
    assert not report(*RIGHT, layers=()).passed
    assert "nothing was compared" in report().verdict
    assert report().verdict.startswith("DIFFERENT")


@pytest.mark.parametrize("wrong", [row("a", 1.0), row("a", NAN), row("a", INF), row("a", note="float32 leak")])
def test_one_wrong_row_is_enough(wrong: Row):
    found = report(*RIGHT, wrong)
    assert not found.passed
    assert found.failures == (wrong,)
    assert found.first_divergence == "a"


def test_the_first_divergence_is_the_first_in_the_order_of_computation():
    assert report(*RIGHT).first_divergence is None
    assert report(row("", 1.0), row("b", 1.0), row("b.fc", 1.0), row("a", 1.0)).first_divergence == "a"
    assert report(*RIGHT, row("", 1.0)).first_divergence == "the model"


def test_free_rows_and_gradients_name_nobody():
    for wrong in (row("a", 1.0, mode="free"), row("a", 1.0, kind="gradient", mode="free")):
        assert report(*RIGHT, wrong).first_divergence is None
        assert not report(*RIGHT, wrong).passed


def test_what_is_passed_on_is_the_work_of_the_module_around():
    assert report(*RIGHT, row("b.fc", 1.0, kind="calls")).first_divergence == "b"
    assert report(*RIGHT, row("b", 1.0, kind="calls")).first_divergence == "the model"
    assert around("a.b.c#2") == "a.b"


def test_a_list_of_modules_is_never_to_blame():
    wrong = row("blocks.0", 1.0, kind="calls")
    found = dataclasses.replace(report(*RIGHT, wrong), layers=(("blocks.0", "Block"), ("", "Model")))
    assert found.first_divergence == "the model"


def test_float32_speaks_only_where_float64_is_silent():
    early = row("a", 1.0, precision="float32")
    assert report(*RIGHT, early, row("b", 1.0)).first_divergence == "b"
    assert report(*RIGHT, early).first_divergence == "a"


def test_the_verdict_counts_and_names():
    assert report(*RIGHT).verdict == "EQUAL: 5 measurements, 5 layer calls, every gate holds"
    wrong = report(*RIGHT, row("b", 1.0))
    assert wrong.verdict == "DIFFERENT: 1 of 6 measurements fail; first divergence: b"
    assert str(wrong).rstrip().endswith(wrong.verdict)
    assert str(report(*RIGHT)).rstrip().endswith("every gate holds")


def test_the_worst_row_is_the_one_closest_to_its_gate():
    near, far = row("a", 9e-14), row("b", 1e-14)
    assert report(far, near).worst("layer", "float64") is near
    assert report(far, near, row("a", note="x")).worst("layer", "float64").note == "x"
    assert report(far).worst("layer", "float32") is None
    assert report(far, near).worst("layer", "float64", "free") is None
    assert tightness(row("a")) == 0
    assert tightness(dataclasses.replace(row("a", 1e-300), gate=0.0)) == INF


def test_json_is_strict_and_whole():
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    rows = [*RIGHT, row("a", NAN), row("b", INF, note="not finite on one side only", growth=-INF)]
    payload = json.loads(report(*rows).to_json(), parse_constant=refuse)
    assert payload["schema"] == SCHEMA_VERSION
    assert payload["passed"] is False
    assert payload["first_divergence"] == "a"
    assert payload["layers"][0] == {"name": "a.fc", "type": "Linear"}
    failing = [entry for entry in payload["rows"] if not entry["passed"]]
    assert [(entry["name"], entry["error"], entry["note"]) for entry in failing] == [
        ("a", "nan", ""),
        ("b", "inf", "not finite on one side only"),
    ]


def test_a_trajectory_counts_as_a_measurement():
    good = Trajectory((1.0,), (1.0,), (1e-12,), (2e-7,), (1e-7,))
    bad = dataclasses.replace(good, distance64=(1e-9,))
    empty = Trajectory((), (), (), (), ())
    for trajectory, passed in ((good, True), (bad, False), (empty, False)):
        found = dataclasses.replace(report(*RIGHT), trajectory=trajectory)
        assert found.passed is trajectory.passed is passed
        assert found.count == 6
    with pytest.raises(ValueError, match="differ in length"):
        dataclasses.replace(good, loss_jax=())
    assert not dataclasses.replace(good, distance32_jax=(4e-7,)).passed


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    payload = json.loads(report(*RIGHT).to_json())
    change(payload)
    return json.dumps(payload)


@pytest.mark.parametrize(
    "change",
    [
        lambda payload: payload["rows"][0].update(error="x"),
        lambda payload: payload["rows"][0].update(error=10**400),
        lambda payload: payload["rows"][0].update(name=3),
        lambda payload: payload["rows"][0].update(name="a." * 5000),
        lambda payload: payload["rows"][0].update(kind=[]),
        lambda payload: payload["layers"][0].update(type=None),
        lambda payload: payload.update(settings=[1]),
        lambda payload: payload.update(environment=None),
        lambda payload: payload.update(unpaired="abc"),
        lambda payload: payload.update(schema="\x1b" * 5000),
        lambda payload: payload["ledger"].update(torch_only=[1]),
    ],
)
def test_a_report_that_makes_no_sense_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], object]):
    path = tmp_path / "report.json"
    path.write_text(changed(change))
    with pytest.raises(ValueError, match=r"cannot read .*report.json \(not a report of parity") as error:
        read_report(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"[]", b"3"])
def test_a_file_that_is_no_report_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*report.json"):
        read_report(tmp_path / "report.json")
    with pytest.raises(FileNotFoundError, match=r"no report at .*other.json"):
        read_report(tmp_path / "other.json")


def test_a_report_is_read_from_its_file(tmp_path: Path):
    (tmp_path / "report.json").write_text(report(*RIGHT).to_json())
    assert read_report(tmp_path / "report.json") == Report.from_json(report(*RIGHT).to_json())
