"""JUnit XML: what a continuous integration system counts and shows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from parity import Report, Row
from tests.support.parity.samples import failing, passing, trained


def suite(report: Report) -> ET.Element:
    root = ET.fromstring(report.to_junit())
    assert root.tag == "testsuites"
    (found,) = root
    return found


def cases(report: Report) -> dict[tuple[str, str], ET.Element]:
    found = suite(report).findall("testcase")
    named = {(case.attrib["classname"], case.attrib["name"]): case for case in found}
    assert len(named) == len(found)
    return named


@pytest.mark.parametrize("make", [passing, failing, trained])
def test_the_totals_are_those_of_the_cases(make) -> None:
    found = suite(make())
    for total, tag in (("tests", "testcase"), ("failures", "testcase/failure"), ("errors", "testcase/error")):
        assert int(found.attrib[total]) == len(found.findall(tag))
        assert ET.fromstring(make().to_junit()).attrib[total] == found.attrib[total]


def test_there_is_one_case_per_name_and_kind() -> None:
    report = passing()
    assert set(cases(report)) == {(f"Net.{row.kind}", row.name or "Net") for row in report.rows}


def test_failures_carry_the_figures() -> None:
    failed = {name: case for name, case in cases(failing()).items() if case.find("failure") is not None}
    assert set(failed) == {
        ("Net.layer", name) for name in ("blocks.1.norm", "blocks.1.mlp.fc", "blocks.1.mlp", "blocks.1", "head")
    } | {("Net.output", "Net")}
    failure = failed["Net.layer", "blocks.1.norm"].find("failure")
    assert failure is not None
    assert "1.00e-03 > 1.0e-13" in (failure.text or "")
    assert "blocks.1.norm" in failure.attrib["message"]


def test_formats_and_training_are_cases_too() -> None:
    report = trained()
    assert {("Net.bfloat16", "output"), ("Net.tf32", "output"), ("Net.training", "trajectory")} <= set(cases(report))
    assert suite(report).attrib["failures"] == "0"
    assert report.trajectory is not None
    late = dataclasses.replace(report.trajectory, distance64=(*report.trajectory.distance64[:-1], 1e-9))
    wrong = dataclasses.replace(
        report, trajectory=late, formats=(dataclasses.replace(report.formats[0], error=1.0), *report.formats[1:])
    )
    failed = {name for name, case in cases(wrong).items() if case.find("failure") is not None}
    assert failed == {("Net.training", "trajectory"), ("Net.bfloat16", "output")}


def test_a_report_of_nothing_is_an_error_not_a_pass() -> None:
    nothing = Report((), passing().ledger, (), environment={})
    assert suite(nothing).attrib["errors"] == "1"


def test_characters_that_xml_cannot_hold_are_replaced() -> None:
    row = Row("a\x00<b>&\x1b", "layer", "free", "float64", 1.0, 0.0, note='"\ud800"')
    report = dataclasses.replace(passing(), rows=(row,))
    ((_, name),) = cases(report)
    assert name == "a\ufffd<b>&\ufffd"


def test_the_file_is_the_text(tmp_path: Path) -> None:
    text = failing().to_junit(tmp_path / "report.xml")
    assert (tmp_path / "report.xml").read_text(encoding="utf-8") == text
    assert ET.parse(tmp_path / "report.xml").getroot().attrib["name"] == "parity Net"
