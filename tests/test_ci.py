"""The workflow and the action: valid, made of commands that exist, and the action's steps do what docs/ci.md says."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.clean_env import ROOT, CleanEnv, copy_sources

WORKFLOW, ACTION, PAGE = ROOT / ".github/workflows/ci.yml", ROOT / "action.yml", ROOT / "docs/ci.md"
SCHEMAS = {WORKFLOW: "github-workflows", ACTION: "github-actions", ROOT / "CITATION.cff": "citation-file-format"}
BUILTIN = {"export", "mapfile", "pins", "test", "words", "words()", "SOURCE_DATE_EPOCH"}
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def snippet() -> str:
    """The workflow that docs/ci.md gives to others."""
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return text


def check_schema(path: Path, schema: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def scripts() -> Iterator[str]:
    """Every `run:` of both files, the values of a matrix filled in."""
    for job in load(WORKFLOW)["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        for values in itertools.product(*matrix.values()):
            chosen = {f"matrix.{name}": str(value) for name, value in zip(matrix, values, strict=True)}
            for step in job["steps"]:
                if "run" in step:
                    yield EXPRESSION.sub(lambda found, chosen=chosen: chosen[found[1]], step["run"])
    for step in load(ACTION)["runs"]["steps"]:
        yield step.get("run", "")


# ---- the files ----


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_the_files_are_what_their_schema_wants(path: Path):
    done = check_schema(path, SCHEMAS[path])
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_snippet_of_the_page_is_a_workflow_with_inputs_of_the_action(tmp_path: Path):
    (tmp_path / "parity.yml").write_text(snippet())
    done = check_schema(tmp_path / "parity.yml", "github-workflows")
    assert done.returncode == 0, done.stdout
    inputs = load(ACTION)["inputs"]
    steps = yaml.safe_load(snippet())["jobs"]["parity"]["steps"]
    assert set(steps[-1]["with"]) <= set(inputs)
    listed = re.findall(r"^\| `([\w-]+)` \|", PAGE.read_text(), flags=re.MULTILINE)
    assert listed == list(inputs)
    for job in load(WORKFLOW)["jobs"].values():
        for step in job["steps"]:
            if step.get("uses") == "./":
                assert set(step["with"]) <= set(inputs)


def test_a_mistake_is_noticed(tmp_path: Path):
    (tmp_path / "ci.yml").write_text(WORKFLOW.read_text().replace("runs-on:", "run-on:"))
    assert check_schema(tmp_path / "ci.yml", "github-workflows").returncode == 1


def test_the_workflow_runs_all_that_ci_run_runs():
    wanted = set(re.findall(r"^make (\S+)$", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE))
    assert wanted
    assert wanted <= {found for script in scripts() for found in re.findall(r"^make (\S+)$", script, re.MULTILINE)}


@pytest.mark.parametrize("script", sorted(set(filter(None, scripts()))))
def test_scripts_are_bash_and_their_commands_exist(script: str, tmp_path: Path):
    assert not EXPRESSION.search(script), "inputs come by env: in a script they could be read as commands"
    path = tmp_path / "script"
    path.write_text(script)
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    text = re.sub(r"<<'EOF'\n.*?^EOF$", "", script, flags=re.DOTALL | re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, text.splitlines()):
        program, *words = re.split(r"[\s=]+", line)
        assert program in BUILTIN or shutil.which(program), line
        assert program != "make" or words[0] in targets, line


# ---- the action, run ----


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> CleanEnv:
    return CleanEnv(tmp_path_factory.mktemp("action") / "env", outer=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("sources") / "t2t-vit")


def run_action(env: CleanEnv, sources: Path, project: Path, **inputs: str) -> dict[str, int]:
    """Runs the steps as a runner does; the exit code of each, by name. After a failure only those with `if` run."""
    action = load(ACTION)
    known = {f"inputs.{name}": value["default"] for name, value in action["inputs"].items()}
    known |= {f"inputs.{name.replace('_', '-')}": value for name, value in inputs.items()}
    runner = {"GITHUB_ACTION_PATH": str(sources), "GITHUB_STEP_SUMMARY": str(project / "summary.md")}
    codes: dict[str, int] = {}
    for step in action["runs"]["steps"]:
        if "run" not in step or (any(codes.values()) and "if" not in step):
            continue
        given = {name: EXPRESSION.sub(lambda found: known[found[1]], text) for name, text in step["env"].items()}
        given.pop("PIP_EXTRA_INDEX_URL", None)  # nothing is downloaded here
        script = project / "step.sh"
        script.write_text(step["run"])
        command = ("bash", "--noprofile", "--norc", "-eo", "pipefail", script)
        done = env.run(*command, cwd=project, check=False, variables={**runner, **given})
        codes[step["name"]] = done.returncode
        assert done.returncode in (0, 1, 4), done.stdout + done.stderr
    return codes


def test_the_action_proves_a_pair_and_keeps_the_reports(env: CleanEnv, sources: Path, tmp_path: Path):
    shutil.copytree(ROOT / "examples/vit_timm_style", tmp_path / "tests")
    codes = run_action(env, sources, tmp_path, reports="kept/reports", install="--no-warn-script-location\n--quiet")
    assert codes == {"Install": 0, "Prove": 0, "Summary": 0}
    assert (env.bin.parent / f"lib/python3.{sys.version_info.minor}/site-packages/parity/proof/check.py").is_file()
    suffixes = sorted(path.suffix for path in (tmp_path / "kept/reports").iterdir())
    assert suffixes == [".html", ".json", ".xml"]
    assert "EQUAL" in (tmp_path / "kept/reports/junit.xml").read_text()
    (line,) = (tmp_path / "summary.md").read_text().splitlines()
    assert re.fullmatch(r"- `tests/test_vit_parity.py::test_vit_is_\w+`: EQUAL: .* every gate holds", line)


def test_options_of_pytest_are_quoted_and_a_test_that_crashes_is_in_the_summary(
    env: CleanEnv, sources: Path, tmp_path: Path
):
    (tmp_path / "two words").mkdir()
    (tmp_path / "two words/test_crash.py").write_text(
        "def test_one_that_breaks(parity):\n    raise OSError('`no` such\\nfile')\n\n\n"
        "def test_another():\n    assert False\n"
    )
    options = '-k "one and not another"\n-p no:cacheprovider'
    codes = run_action(env, sources, tmp_path, tests='"two words/test_crash.py"', pytest_args=options)
    assert codes == {"Install": 0, "Prove": 1, "Summary": 0}
    (line,) = (tmp_path / "summary.md").read_text().splitlines()
    assert line == "- `two words.test_crash::test_one_that_breaks`: CRASHED: `OSError: 'no' such file`"


def test_the_summary_says_that_no_test_ran(env: CleanEnv, sources: Path, tmp_path: Path):
    codes = run_action(env, sources, tmp_path, tests=".", pytest_args="--no-such-option", constraints="none")
    assert codes == {"Install": 0, "Prove": 4, "Summary": 0}
    assert (tmp_path / "summary.md").read_text().startswith("- no test ran: ")


def test_the_action_keeps_pips_files_and_pins_versions(sources: Path):
    steps = load(ACTION)["runs"]["steps"]
    (cache,) = (step for step in steps if str(step.get("uses", "")).startswith("actions/cache@"))
    (install,) = (step for step in steps if step.get("name") == "Install")
    assert f"--cache-dir {cache['with']['path']}" in install["run"]
    assert "--constraint" in install["run"]
    assert (sources / "constraints.txt").is_file()


def test_the_action_fails_with_a_pair_that_differs_and_keeps_the_reports(env: CleanEnv, sources: Path, tmp_path: Path):
    test, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    wrong = "    jax_model.bias.set_value(jax_model.bias[...] + 1)\n"
    (tmp_path / "test_wrong.py").write_text(
        test.replace("    parity.assert_parity", f"{wrong}    parity.assert_parity")
    )
    codes = run_action(env, sources, tmp_path, tests="test_wrong.py", pytest_args="-q -k port")
    assert codes == {"Install": 0, "Prove": 1, "Summary": 0}
    assert "DIFFERENT" in (tmp_path / "summary.md").read_text()
    assert len(list((tmp_path / "parity-reports").glob("*.html"))) == 1
