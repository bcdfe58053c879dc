"""Render a report as JUnit XML for continuous integration systems."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from parity.measure.gates import Row
from parity.report.findings import Findings, Trajectory
from parity.report.json_values import shallow
from parity.report.view import describe, figure_text

UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 does not allow, even escaped."""


def junit(report: Findings) -> str:
    """Return one testcase per module or tensor and kind, one per format, and one for the trajectory.

    A report without measurements yields one testcase with an error, so that it is not mistaken for a pass.
    """
    cases = [_case(report, kind, name or report.title, rows) for (kind, name), rows in _by_kind(report).items()]
    for row in report.formats:
        figures = f"{figure_text(row.error)} against a cap of {figure_text(row.cap)}"
        cases.append(_testcase(report, row.format, row.name, figures, row.passed))
    if report.trajectory is not None:
        trajectory = report.trajectory
        cases.append(_testcase(report, "training", "trajectory", _steps(trajectory), trajectory.passed))
    errors = 0
    if not report.rows or not report.layers:
        errors = 1
        cases.append(ET.Element("testcase", classname=_printable(report.title), name="measurements"))
        ET.SubElement(cases[-1], "error", message="nothing was compared")
    return _document(report, cases, errors)


def _by_kind(report: Findings) -> dict[tuple[str, str], list[Row]]:
    rows: dict[tuple[str, str], list[Row]] = {}
    for row in report.rows:
        rows.setdefault((row.kind, row.name), []).append(row)
    return rows


def _case(report: Findings, kind: str, name: str, rows: Sequence[Row]) -> ET.Element:
    failed = [row for row in rows if not row.passed]
    reference = report.sides[1]
    message = describe(failed[0], reference) if failed else ""
    figures = "\n".join(describe(row, reference) for row in rows)
    return _testcase(report, kind, name, figures, not failed, message)


def _testcase(report: Findings, kind: str, name: str, figures: str, passed: bool, message: str = "") -> ET.Element:
    # Most viewers show dots in a classname as a hierarchy: model, then kind.
    case = ET.Element("testcase", classname=_printable(f"{report.title}.{kind}"), name=_printable(name))
    if passed:
        ET.SubElement(case, "system-out").text = _printable(figures)
    else:
        ET.SubElement(case, "failure", message=_printable(message or figures)).text = _printable(figures)
    return case


def _steps(trajectory: Trajectory) -> str:
    series = zip(
        trajectory.distance64,
        trajectory.distance32_jax,
        trajectory.distance32_torch,
        trajectory.limits32,
        strict=True,
    )
    lines = [
        f"step {i}: float64 {figure_text(double)} (gate {figure_text(trajectory.gate64)}), "
        f"float32 {figure_text(single)} (PyTorch {figure_text(own)}, gate {figure_text(limit)})"
        for i, (double, single, own, limit) in enumerate(series, start=1)
    ]
    return "\n".join(lines) or "no step was compared"


def _document(report: Findings, cases: Sequence[ET.Element], errors: int) -> str:
    failures = sum(case.find("failure") is not None for case in cases)
    totals = {
        "name": _printable(f"parity {report.title}"),
        "tests": str(len(cases)),
        "failures": str(failures),
        "errors": str(errors),
        "skipped": "0",
        "time": str(report.settings.get("seconds", 0)),
    }
    root = ET.Element("testsuites", {key: totals[key] for key in ("name", "tests", "failures", "errors", "time")})
    suite = ET.SubElement(root, "testsuite", totals)
    properties = ET.SubElement(suite, "properties")
    for name, value in shallow({"verdict": report.verdict, **report.settings, **report.environment}).items():
        ET.SubElement(properties, "property", name=_printable(name), value=_printable(str(value)))
    suite.extend(cases)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True).decode() + "\n"


def _printable(text: str) -> str:
    return UNPRINTABLE.sub("\ufffd", text)
