"""JSON: valid by the schema that is shipped, and enough to restore the whole report."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity import Report
from parity.report.findings import Trajectory
from parity.report.report import SCHEMA_FILE
from tests.support.parity.samples import failing, passing, trained, with_rows

SCHEMA = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


def strict(text: str) -> Any:
    """JSON as the standard has it: Python's own reader takes NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def nonfinite() -> Report:
    """Infinite and undefined figures where they can occur."""
    report = trained(2)
    assert report.trajectory is not None
    losses = dataclasses.replace(report.trajectory, loss_jax=(math.nan, -math.inf), distance64=(math.inf, math.nan))
    return with_rows(dataclasses.replace(report, trajectory=losses), {("stem", "layer", "free", "float64"): math.inf})


def checked() -> Report:
    """A report as `check` makes it."""
    torch_model, jax_model = torch.nn.Linear(3, 4), nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    parity.torch_to_jax(torch_model, jax_model)
    return parity.check(torch_model, jax_model, np.random.RandomState(0).standard_normal((2, 3)))


REPORTS = [passing, failing, trained, nonfinite, checked]


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("make", REPORTS)
def test_reports_are_valid(make) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(strict(make().to_json()))


@pytest.mark.parametrize("make", REPORTS)
def test_a_report_is_restored_whole(make) -> None:
    text = make().to_json()
    restored = Report.from_json(text)
    assert restored.to_json() == text
    assert restored.ledger == make().ledger
    assert restored.verdict == make().verdict
    assert [type(row.error) for row in restored.rows] == [float] * len(restored.rows)


def test_a_restored_report_is_equal_and_looks_the_same() -> None:
    report = failing()
    restored = Report.from_json(report.to_json())
    assert restored == report
    assert restored.to_html() == report.to_html()
    assert str(restored) == str(report)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["schema"], 2),
        (["passed"], "yes"),
        (["rows", 1, "error"], -1.0),
        (["rows", 1, "error"], None),
        (["rows", 1, "error"], "huge"),
        (["rows", 1, "colour"], "red"),
        (["ledger", "entries", 0, "axes"], "none"),
        (["causes", 0, "switch"], None),
        (["layers", 0], ["stem", "Conv2d"]),
        (["trajectory"], {}),
    ],
)
def test_the_schema_is_strict(path: list[Any], value: Any) -> None:
    payload = json.loads(failing().to_json())
    parent = payload
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(payload)


@pytest.mark.parametrize("key", list(json.loads(passing().to_json())))
def test_nothing_may_be_missing(key: str) -> None:
    payload = json.loads(passing().to_json())
    del payload[key]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(payload)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99}', passing().to_json()[:-20]])
def test_what_is_not_a_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a report of parity"):
        Report.from_json(text)


def test_a_trajectory_passes_by_its_own_gates() -> None:
    good = Trajectory((1.0,), (1.0,), (1e-10,), (3e-5,), (1e-5,))
    assert good.passed
    assert not dataclasses.replace(good, distance64=(1.1e-10,)).passed
    assert not dataclasses.replace(good, distance64=(math.nan,)).passed
    assert not dataclasses.replace(good, distance32_jax=(3.1e-5,)).passed
    assert not dataclasses.replace(good, distance32_jax=(2e-3,), distance32_torch=(1e-3,)).passed
    assert not Trajectory((), (), (), (), ()).passed
    with pytest.raises(ValueError, match="differ in length"):
        dataclasses.replace(good, loss_jax=())


def test_formats_and_training_decide_the_verdict_too() -> None:
    report = trained()
    assert report.passed
    assert not dataclasses.replace(report, formats=(dataclasses.replace(report.formats[0], error=1.0),)).passed
    assert not dataclasses.replace(report, trajectory=Trajectory((), (), (), (), ())).passed
