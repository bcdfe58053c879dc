"""An installation without extras: every package and every command says in one line what to install."""

from __future__ import annotations

import importlib.metadata
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from t2t_common.io.commands import SCRIPTS
from t2t_config import extras
from tests.support.clean_env import ROOT, SIGINT_AS_USUAL, CleanEnv
from tests.test_command_lines import programs

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> CleanEnv:
    """An environment with nothing in it."""
    return CleanEnv(tmp_path_factory.mktemp("plain") / "env", outer=False)


def run(plain: CleanEnv, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = (plain.bin / "python", *arguments)
    return plain.run(*command, cwd=cwd, check=False, variables={"PYTHONPATH": str(ROOT)})


def assert_one_line(done: subprocess.CompletedProcess[str], extra: str) -> None:
    assert done.returncode == extras.MISUSED
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(f"{extras.install_hint(extra)}\n")
    assert ("pip install -e packaging/parity -e" in done.stderr) == (extra in ("parity", "demo"))
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("program", [program for program in programs() if program != "parity"])
def test_every_command_says_what_to_install(program: str, plain: CleanEnv, tmp_path: Path):
    done = run(plain, "-m", program, "digits", "--help", cwd=tmp_path)
    assert_one_line(done, extras.NEEDS[program.partition(".")[0]][0])


@pytest.mark.parametrize("script", ["t2t-train", "t2t-torch-predict", "t2t-parity"])
def test_every_script_says_what_to_install(script: str, plain: CleanEnv, tmp_path: Path):
    path = tmp_path / script
    path.write_text("from t2t_common.io.commands import main\nmain()\n")
    package = "t2t_parity" if script == "t2t-parity" else SCRIPTS[script].partition(".")[0]
    assert_one_line(run(plain, str(path), "digits", cwd=tmp_path), extras.NEEDS[package][0])


def test_the_demo_says_what_to_install(plain: CleanEnv, tmp_path: Path):
    assert_one_line(run(plain, str(ROOT / "examples/demo.py"), cwd=tmp_path), "demo")


@pytest.mark.parametrize("package", ["t2t_torch", "t2t_jax"])
def test_every_import_says_what_to_install(package: str, plain: CleanEnv, tmp_path: Path):
    done = run(plain, "-c", f"import {package}", cwd=tmp_path)
    assert "ModuleNotFoundError" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {package} needs what is not installed (")
    assert last.endswith(f'pip install -e ".[{extras.NEEDS[package][0]}]" (in {ROOT})')


def test_other_errors_of_an_import_stay_as_they_are():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), extras.explained("t2t_torch"):
        import no_such_module  # noqa: F401


@pytest.mark.parametrize("program", ["t2t_jax.train", "t2t_torch"])
def test_the_version_needs_no_extra(program: str, plain: CleanEnv, tmp_path: Path):
    done = run(plain, "-m", program, "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"t2t-vit {PROJECT['version']}\n", "")


@pytest.mark.parametrize("extra", ["torch", "jax", "parity", "demo"])
def test_the_modules_are_those_that_the_extra_installs(extra: str):
    from tests.test_wheel import distribution
    from tests.test_wheel import extra as asked

    given = importlib.metadata.packages_distributions()
    alone = {"orbax.checkpoint": "orbax-checkpoint", "google.protobuf": "protobuf", "parity": "torch-jax-parity"}
    modules = next(modules for named, modules in extras.NEEDS.values() if named == extra)
    named = {alone.get(name) or distribution(given[name][0]) for name in modules}
    assert named == asked(extra)
    package = next(package for package, (named, _) in extras.NEEDS.items() if named == extra)
    assert extras.missing(package) == []


def test_of_many_modules_a_few_are_named():
    assert "(a, b, c):" in extras.complaint("t2t_jax", ["a", "b", "c"])
    assert "(a, b, c and 2 more):" in extras.complaint("t2t_jax", ["a", "b", "c", "d", "e"])


def test_where_the_clone_is_not_known_the_hint_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(extras, "ROOT", tmp_path)
    monkeypatch.setattr(extras, "DISTRIBUTION", "no-such-distribution")
    assert extras.install_hint("jax") == 'pip install -e ".[jax]" (in a clone of the repository)'
    assert extras.version() == "unknown"


# ---- Ctrl-C ----


@pytest.mark.parametrize("module", ["t2t_jax.train", "t2t_torch.train", "parity"])
def test_ctrl_c_while_modules_are_imported_is_one_line(module: str, tmp_path: Path):
    """As soon as the first of them is."""
    command = [
        *SIGINT_AS_USUAL,
        sys.executable,
        "-v",
        "-m",
        module,
        *(["digits"] if module != "parity" else ["doctor"]),
    ]
    environ = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin"}
    options: dict[str, Any] = {"cwd": tmp_path, "env": environ}
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, **options) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if re.match(r"import 'numpy", line):
                break
        process.send_signal(signal.SIGINT)
        rest = [line for line in process.stderr if not re.match(r"#|import |\s*$", line)]
    assert process.returncode == extras.INTERRUPTED
    assert rest[-1] == "stopped\n"
    assert not [line for line in rest if "Traceback" in line or "KeyboardInterrupt" in line]


def test_a_module_of_others_that_imports_ours_keeps_its_ctrl_c(tmp_path: Path):
    """And its own --version."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").write_text("import t2t_config")
    text = "import signal, sys; print(signal.getsignal(2) is signal.default_int_handler, sys.argv[1:])"
    (tmp_path / "mine/run.py").write_text(text)
    command = [*SIGINT_AS_USUAL, sys.executable, "-m", "mine.run", "--version"]
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"}
    options: dict[str, Any] = {"cwd": tmp_path, "env": environ}
    done = subprocess.run(command, capture_output=True, text=True, check=True, **options)
    assert done.stdout == "True ['--version']\n"


def test_ctrl_c_stays_ignored_where_it_was(monkeypatch: pytest.MonkeyPatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        extras.end_at_ctrl_c()
        extras.restore_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
