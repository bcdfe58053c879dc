"""The verdict, the first divergence, and JSON that any reader takes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parity import Ledger, Report, Row
from parity.report.findings import Trajectory, around, tightness
from parity.report.report import SCHEMA_VERSION, read_report

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


# ---- files ----

FORMS = ("html", "junit", "json")


def write(found: Report, form: str, path: Path) -> str:
    return getattr(found, f"to_{form}")(path)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "report"
    text = write(report(*RIGHT), form, path)
    assert path.read_text(encoding="utf-8") == text == write(report(*RIGHT), form, path)

    def full(self: Path, text: str, **options: Any) -> None:
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ValueError, match="No space left"):
        write(report(*RIGHT, row("a", 1.0)), form, path)
    assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("form", FORMS)
def test_a_link_is_replaced_and_not_followed(tmp_path: Path, form: str):
    (tmp_path / "mine").write_text("mine")
    for name in ("mine", "nowhere"):
        link = tmp_path / f"link to {name}"
        link.symlink_to(tmp_path / name)
        text = write(report(*RIGHT), form, link)
        assert not link.is_symlink()
        assert link.read_text(encoding="utf-8") == text
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("form", FORMS)
def test_what_cannot_be_written_is_one_line(tmp_path: Path, form: str):
    with pytest.raises(FileNotFoundError, match="create the folder"):
        write(report(*RIGHT), form, tmp_path / "none" / "file")
    with pytest.raises(ValueError, match="it is a folder"):
        write(report(*RIGHT), form, tmp_path)


# ---- what no figure should be ----


@pytest.mark.parametrize("losses", [(1e308, -1e308), (1.7e308, -1.7e308), (1e308, 1e308), (-INF, 1e308)])
def test_losses_at_the_end_of_the_numbers(losses: tuple[float, float]):
    distances = (0.0, 1e308)
    trajectory = Trajectory(losses, losses[::-1], distances, distances, distances)
    found = dataclasses.replace(report(*RIGHT), trajectory=trajectory)
    assert "Loss in float64" in found.to_html()
    assert "training" in found.to_junit()
    assert str(found)
    assert Report.from_json(found.to_json()).trajectory == trajectory


@pytest.mark.parametrize("depth", [49, 900, 100_000])
@pytest.mark.parametrize("wrap", [lambda value: {"a": value}, lambda value: [value], lambda value: (value,)])
def test_settings_nested_deep(depth: int, wrap: Callable[[Any], Any]):
    value: Any = "core"
    for _ in range(depth):
        value = wrap(value)
    found = dataclasses.replace(report(*RIGHT), settings={"name": value, "inner": value}, environment={"outer": value})
    for text in (found.to_html(), found.to_junit(), found.to_json(), str(found)):
        assert ("left out" in text) == (depth > 49) or text == str(found)
    assert Report.from_json(found.to_json()).passed
    assert found.settings["inner"] is value


def test_settings_that_no_writer_knows():
    found = dataclasses.replace(report(*RIGHT), settings={"path": Path("a"), "kinds": {1, 2}})
    assert json.loads(found.to_json())["settings"]["path"] == "a"
    assert "kinds" in found.to_html()
