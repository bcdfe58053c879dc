"""The campaign that changes the proof: what it counts, and that its list of explanations is about the code as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools.reliability import mutation
from tools.reliability.mutation import Change, equivalent, figures, outcomes, run_mutmut
from tools.reliability.record import ROOT

TOY = {
    "pyproject.toml": """[tool.mutmut]
source_paths = ["toy"]
process_isolation = "forkserver"
pytest_add_cli_args_test_selection = ["tests"]
""",
    "toy/__init__.py": "",
    "toy/sums.py": """def add(a, b):
    return a + b


def weak(a, b):
    return (
        a - b
    )


def unseen(x):
    return x * x
""",
    "tests/test_sums.py": """from toy.sums import add, weak


def test_add():
    assert add(1, 2) == 3
    assert weak(1, 0) == 1
""",
}
WEAK = Change("toy/sums.py", "a - b", "a + b")
UNSEEN = Change("toy/sums.py", "return x * x", "return x / x")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    for name, text in TOY.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        run_mutmut(root, workers=1, resume=False)
    return root


def test_a_change_that_no_test_notices_is_found(toy: Path):
    found = figures(toy, {})
    assert found["files"] == {
        "toy/sums.py": {"mutants": 3, "killed": 1, "timed out": 0, "explained": 0, "unexplained": 2}
    }
    assert [Change(**c) for c in found["unexplained mutants"]] == [WEAK, UNSEEN]
    assert sorted(outcomes(toy)["toy/sums.py"].values()) == ["killed", "survived", "survived"]


def test_a_change_may_be_explained_and_an_explanation_needs_one(toy: Path):
    killed = Change("toy/sums.py", "return a + b", "return a - b")
    found = figures(toy, {WEAK: "known", killed: "wrong"})
    assert (found["explained"], found["unexplained"]) == (1, 1)
    assert [Change(**c) for c in found["reasons without a mutant"]] == [killed]


def test_survivors_are_tried_again(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    toy = Path(shutil.copytree(toy, tmp_path / "toy"))
    tests = toy / "tests" / "test_sums.py"
    tests.write_text(tests.read_text() + "\n\ndef test_weak():\n    assert weak(1, 1) == 0\n")
    run_mutmut(toy, workers=1, resume=True)
    assert sorted(outcomes(toy)["toy/sums.py"].values()) == ["killed", "killed", "survived"]


def test_a_suite_that_fails_without_a_mutant_is_an_error(tmp_path: Path):
    (tmp_path / "pyproject.toml").write_text("[tool.mutmut]\nsource_paths = 3\n")
    with pytest.raises(ValueError, match="mutmut ended with code 1"):
        run_mutmut(tmp_path, workers=1, resume=False)


def test_every_explanation_is_about_a_line_that_is_there():
    for change in equivalent():
        assert change.line in " ".join((ROOT / change.file).read_text().split()), change
        assert change.line != change.becomes


def test_every_explanation_has_a_reason(tmp_path: Path):
    entry = '[[equivalent]]\nfile = "a.py"\nline = "x"\nbecomes = ["y", "z"]\nreason = "{}"\n'
    (tmp_path / "list.toml").write_text(entry.format("same"))
    assert equivalent(tmp_path / "list.toml") == dict.fromkeys(
        (Change("a.py", "x", "y"), Change("a.py", "x", "z")), "same"
    )
    (tmp_path / "list.toml").write_text(entry.format(" "))
    with pytest.raises(ValueError, match="'x' has no reason"):
        equivalent(tmp_path / "list.toml")


@pytest.mark.parametrize(("workers", "message"), [("0", "--workers 0: at least one has to run"), ("x", "workers")])
def test_options_that_cannot_be(workers: str, message: str):
    with pytest.raises(ValueError, match=message):
        mutation.main(["--workers", workers])
