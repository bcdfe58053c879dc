"""pytest plugin: the fixture `parity` checks pairs of models and optionally writes a report of each check.

    def test_my_port(parity):
        parity.assert_parity(torch_model, jax_model, inputs)

`@pytest.mark.parity(level="forward", gates=...)` sets options of `parity.check` for a test, a class or a module.
This module is outside the package so that starting pytest imports neither PyTorch nor JAX.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch
    from flax import nnx

    from parity.carry.program import Adapter
    from parity.report.report import Report

FORMATS = {"html": "one page", "json": "JSON"}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parity", "PyTorch and JAX side by side")
    for name, what in FORMATS.items():
        group.addoption(f"--parity-{name}", metavar="DIR", help=f"write each report of the fixture `parity` as {what}")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "parity(**options): options of parity.check for the fixture `parity`")
    for name in FORMATS:
        folder = _folder(config, name)
        if folder is not None and folder.exists() and not folder.is_dir():
            raise pytest.UsageError(f"--parity-{name}: {folder} is not a folder")


def _folder(config: pytest.Config, name: str) -> Path | None:
    given = config.getoption(f"parity_{name}")
    return None if given is None else config.invocation_params.dir / given


@dataclasses.dataclass
class Parity:
    """Value of the fixture: runs checks with the options of the test; `reports` holds their reports in order."""

    node: pytest.Item
    reports: list[Report] = dataclasses.field(default_factory=list)

    def check(
        self, torch_model: torch.nn.Module, jax_model: nnx.Module | Adapter, inputs: Any, **options: Any
    ) -> Report:
        """Run `parity.check` and return its report. Options given here override those of the marker."""
        from parity.proof.check import check

        report = check(torch_model, jax_model, inputs, **(self.options() | options))
        report = dataclasses.replace(report, settings={**report.settings, "test": self.node.nodeid})
        self.reports.append(report)
        self.node.user_properties.append(("parity", report.verdict))
        if not report.passed:
            self.node.add_report_section("call", "parity", report.render(width=100))
        self.save(report)
        return report

    def assert_parity(
        self, torch_model: torch.nn.Module, jax_model: nnx.Module | Adapter, inputs: Any, **options: Any
    ) -> Report:
        """Run `check` and raise `AssertionError` with the first failures unless every gate holds."""
        __tracebackhide__ = True
        report = self.check(torch_model, jax_model, inputs, **options)
        if not report.passed:
            raise AssertionError(f"the models differ\n{report.brief()}")
        return report

    def options(self) -> dict[str, Any]:
        """Return the merged options of all markers; the closest marker takes precedence."""
        merged: dict[str, Any] = {}
        for marker in self.node.iter_markers("parity"):
            if marker.args:
                raise pytest.UsageError(f"@pytest.mark.parity takes options by name only, got {marker.args}")
            merged = {**marker.kwargs, **merged}
        return merged

    def save(self, report: Report) -> None:
        """Write the report to one file in each folder given on the command line."""
        for name, write in (("html", report.to_html), ("json", report.to_json)):
            folder = _folder(self.node.config, name)
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                write(folder / f"{self.file_name()}.{name}")

    def file_name(self) -> str:
        """Return the sanitized test name, a checksum of the full name, and a number from the second report on."""
        node = self.node.nodeid
        name = re.sub(r"[^\w.]+", "-", node)[:150].strip("-")
        number = f"-{len(self.reports)}" if len(self.reports) > 1 else ""
        return f"{name}-{zlib.crc32(node.encode()):08x}{number}"


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Parity:
    """Check that a PyTorch model and a JAX model are the same: `.check`, `.assert_parity`, `.reports`."""
    return Parity(request.node)
