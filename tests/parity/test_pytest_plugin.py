"""The pytest plugin, as its user sees it: in runs of pytest on files of their own."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import tests.support.inner_runs  # noqa: F401  (before any inner run)
from parity import Report

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]

PAIR = """
import numpy as np, pytest, torch
from flax import nnx
from parity import Gates, torch_to_jax

INPUTS = np.random.RandomState(0).standard_normal((2, 3))

def pair(bug=0.0):
    torch_model, jax_model = torch.nn.Linear(3, 4), nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    torch_to_jax(torch_model, jax_model)
    jax_model.bias.set_value(jax_model.bias[...] + bug)
    return torch_model, jax_model
"""


def run(pytester: pytest.Pytester, tests: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(PAIR + tests)
    return pytester.runpytest_inprocess("-p", "pytest_parity", *arguments)


def test_an_equal_pair_passes_and_a_wrong_one_fails_with_a_short_report(pytester: pytest.Pytester) -> None:
    tests = """
def test_good(parity):
    assert parity.assert_parity(*pair(), INPUTS, level="forward").passed

def test_bad(parity):
    parity.assert_parity(*pair(1e-6), INPUTS, level="forward")
"""
    result = run(pytester, tests)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*AssertionError: the models differ",
            "E*DIFFERENT: * measurements fail; first divergence: the model",
            "E*FAILED bias * > 0.0e+00",
            "*Captured parity call*",
            "Modules, relF",
            "DIFFERENT: * measurements fail; first divergence: the model",
        ]
    )
    result.stdout.no_fnmatch_line("*in check*")


def test_an_adapter_is_taken_in_place_of_a_flax_model(pytester: pytest.Pytester) -> None:
    tests = """
import parity as library

def test_good(parity):
    torch_model, jax_model = pair()
    params = {"w": np.asarray(jax_model.kernel[...]), "b": np.asarray(jax_model.bias[...])}
    adapter = library.function(lambda params, x: x @ params["w"] + params["b"][None], params)
    assert parity.assert_parity(torch_model, adapter, INPUTS, level="forward").passed
"""
    run(pytester, tests).assert_outcomes(passed=1)


def test_check_only_reports(pytester: pytest.Pytester) -> None:
    tests = """
def test_bad(parity):
    report = parity.check(*pair(1e-6), INPUTS, level="forward")
    assert not report.passed
    assert parity.reports == [report]
"""
    run(pytester, tests).assert_outcomes(passed=1)


def test_the_closest_marker_wins_and_the_call_goes_before_all(pytester: pytest.Pytester) -> None:
    tests = """
pytestmark = pytest.mark.parity(level="forward", gates=Gates(f64=1.0))

class TestOptions:
    @pytest.mark.parity(gates=Gates(f64=2.0))
    def test_merged(self, parity):
        report = parity.check(*pair(), INPUTS)
        assert report.settings["level"] == "forward"
        assert {row.gate for row in report.rows if row.precision == "float64"} == {2.0}

    def test_outer(self, parity):
        report = parity.check(*pair(), INPUTS, gates=Gates(f64=3.0))
        assert {row.gate for row in report.rows if row.precision == "float64"} == {3.0}
"""
    run(pytester, tests, "--strict-markers").assert_outcomes(passed=2)


def test_calls_and_the_reference_are_options(pytester: pytest.Pytester) -> None:
    tests = """
@pytest.mark.parity(level="forward", reference="jax")
def test_options(parity):
    calls = {"torch_call": lambda m, x: {"y": m(x)}, "jax_call": lambda m, x: {"y": m(x), "z": None}}
    assert parity.assert_parity(*pair(), INPUTS, **calls).settings["reference"] == "jax"
"""
    run(pytester, tests).assert_outcomes(passed=1)


def test_a_marker_takes_names_only(pytester: pytest.Pytester) -> None:
    tests = """
@pytest.mark.parity("forward")
def test_bad(parity):
    parity.check(*pair(), INPUTS)
"""
    result = run(pytester, tests)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*takes options by name only*"])


def test_each_test_leaves_its_reports_where_asked(pytester: pytest.Pytester) -> None:
    tests = """
@pytest.mark.parity(level="forward")
@pytest.mark.parametrize("bug", [0.0, 1e-6], ids=["a/b", "a b"])
def test_some(parity, bug):
    parity.check(*pair(), INPUTS)
    parity.assert_parity(*pair(bug), INPUTS)
"""
    arguments = ("--parity-html", "pages", "--parity-json", "deep/json", "--junit-xml", "junit.xml")
    run(pytester, tests, *arguments).assert_outcomes(passed=1, failed=1)
    pages, texts = sorted((pytester.path / "pages").iterdir()), sorted((pytester.path / "deep/json").iterdir())
    assert [path.stem for path in pages] == [path.stem for path in texts]
    assert len(pages) == 4
    reports = [Report.from_json(path.read_text(encoding="utf-8")) for path in texts]
    assert sum(report.passed for report in reports) == 3
    assert {report.settings["test"].partition("[")[2] for report in reports} == {"a/b]", "a b]"}
    assert all(path.read_text(encoding="utf-8").startswith("<!doctype html>") for path in pages)
    assert (pytester.path / "junit.xml").read_text(encoding="utf-8").count('<property name="parity"') == 4


def test_a_file_in_the_way_is_a_usage_error(pytester: pytest.Pytester) -> None:
    (pytester.path / "taken").touch()
    result = run(pytester, "def test_nothing(): pass", "--parity-html", "taken")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--parity-html: *taken is not a folder*"])


def test_starting_pytest_imports_neither_framework() -> None:
    code = "import sys, pytest_parity; print(*{'torch', 'jax', 'flax', 'numpy', 'parity'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == ""


def test_pytest_finds_the_plugin_by_itself() -> None:
    (plugin,) = (entry for entry in metadata.entry_points(group="pytest11") if entry.name == "pytest_parity")
    assert plugin.load().__name__ == "pytest_parity"


def test_an_inner_run_leaves_libraries_imported_and_forgets_its_own_files(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a module of `parity` that an inner run imports first is another one for the tests that follow."""
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    pytester.makepyfile(neighbour="", test_inner="import colorsys, neighbour\n\ndef test_nothing():\n    pass\n")
    pytester.syspathinsert()
    pytester.runpytest_inprocess().assert_outcomes(passed=1)
    assert "colorsys" in sys.modules
    assert not {"neighbour", "test_inner"} & sys.modules.keys()
