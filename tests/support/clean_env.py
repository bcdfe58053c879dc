"""The package as others get it: the sources alone, and environments that have what it needs but not itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("t2t_common", "t2t_config", "t2t_jax", "t2t_parity", "t2t_torch")
"""Those of t2t-vit; `parity` is a distribution of its own."""
NEEDED = ("action.yml", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")


def copy_sources(folder: Path) -> Path:
    """A copy of the repository, less what its history and its tools put there: building writes beside the sources."""
    folder.mkdir()
    for name in (*NEEDED, "constraints.txt", "pytest_parity.py"):
        shutil.copy2(ROOT / name, folder / name)
    for name in (*PACKAGES, "packaging", "parity", "tests", "tools", "docs", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=LEFT_OUT, symlinks=True)
    return folder


OWN = ("t2t_vit", "torch_jax_parity", "__editable__")
"""How the entries of this project in site-packages begin."""


class CleanEnv:
    """A virtual environment without this package; with `outer`, it sees all others that the tests run with."""

    def __init__(self, folder: Path, *, outer: bool) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.bin = folder / "bin"
        if outer:
            (site,) = folder.glob("lib/python*/site-packages")
            others = folder / "others"
            others.mkdir()
            for path in Path(sysconfig.get_path("purelib")).iterdir():
                if not path.name.startswith(OWN):
                    (others / path.name).symlink_to(path)
            # A path only: the .pth files there, of editable installs, are not read.
            (site / "outer.pth").write_text(f"{others}\n")

    def environ(self, **variables: str) -> dict[str, str]:
        """Of its processes: this environment's Python first, no other place of modules, pip without a network."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
        path = f"{self.bin}{os.pathsep}{kept['PATH']}"
        pip = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        return {**kept, **pip, "PATH": path, "PYTHONSAFEPATH": "", **variables}

    def run(
        self, *command: object, cwd: Path, check: bool = True, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command there; what it printed."""
        words = [str(word) for word in command]
        environ = self.environ(**(variables or {}))
        done = subprocess.run(words, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    def python(self, *arguments: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs Python there."""
        return self.run(self.bin / "python", *arguments, cwd=cwd, check=check)


# Before a command: a process that is started in the background ignores Ctrl-C, and hands that on. (`preexec_fn` would
# fork this process, and JAX warns of that once it has computed here.)
SIGINT_AS_USUAL = (
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])",
)
