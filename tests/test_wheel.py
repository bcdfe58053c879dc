"""What is published and installed: the content of wheel and source archive, the same bytes from each build, and that it
works without the sources.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clean_env import NEEDED, PACKAGES, ROOT, CleanEnv, copy_sources

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PARITY = tomllib.loads((ROOT / "packaging/parity/pyproject.toml").read_text())["project"]
DATA = {
    *(f"{package}/py.typed" for package in PACKAGES),
    "t2t_common/pages/layout.html",
    "t2t_common/pages/pictures.html",
    "t2t_common/pages/run.html",
    "t2t_common/pages/style.css",
    "t2t_config/imagenet_classes.tsv",
}
PARITY_DATA = {"parity/py.typed", "parity/report/report.css", "parity/report/report.schema.json"}
STRAY = (
    "notes.md",
    ".env",
    "demo/run.json",
    "tools/benchmarks/speed.py",
    "parity/weights.pth",
    "t2t_common/run_page/.env",
    "packaging/parity/notes.md",
)
"""What may lie about where a package is built, and is no part of it."""
EPOCH = 1_750_000_000


def build(sources: Path, out: Path, *kinds: str) -> Path:
    """`python -m build` as the workflow calls it, with the build backend that is there."""
    command = [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", str(out), str(sources)]
    environ = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, and what may lie about among them."""
    sources = copy_sources(tmp_path_factory.mktemp("dist") / "sources")
    for name in STRAY:
        (sources / name).parent.mkdir(exist_ok=True)
        (sources / name).write_text("secret")
    return sources


@pytest.fixture(scope="module")
def dist(sources: Path) -> Path:
    """A folder with the source archive, and with the wheel built from it."""
    return build(sources, sources.parent / "dist")


@pytest.fixture(scope="module")
def parity_dist(sources: Path) -> Path:
    """The same of parity."""
    return build(sources / "packaging/parity", sources.parent / "parity_dist")


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def parity_wheel(parity_dist: Path) -> Path:
    (path,) = parity_dist.glob("*.whl")
    return path


def install(folder: Path, *wheels: Path) -> CleanEnv:
    """The wheels in an environment that has everything else."""
    env = CleanEnv(folder / "env", outer=True)
    env.python("-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed", *wheels, cwd=folder)
    return env


@pytest.fixture(scope="module")
def installed(wheel: Path, parity_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> CleanEnv:
    return install(tmp_path_factory.mktemp("installed"), wheel, parity_wheel)


@pytest.fixture(scope="module")
def alone(parity_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> CleanEnv:
    """parity where none of T2T is."""
    env = install(tmp_path_factory.mktemp("alone"), parity_wheel)
    code = f"import importlib.util; print([name for name in {PACKAGES} if importlib.util.find_spec(name)])"
    assert env.python("-c", code, cwd=env.bin).stdout == "[]\n"
    return env


# ---- content ----


def test_the_wheel_holds_every_module_and_its_data_and_nothing_else(wheel: Path):
    sources = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"{wheel.name.split('-py3')[0]}.dist-info/"
    metadata = {name for name in names if name.startswith(info)}
    assert names - metadata == sources | DATA
    assert f"{info}licenses/LICENSE" in metadata


def test_the_wheel_of_parity_is_small_and_holds_nothing_of_t2t(parity_wheel: Path):
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "parity").rglob("*.py")}
    names = set(zipfile.ZipFile(parity_wheel).namelist())
    info = f"{parity_wheel.name.split('-py3')[0]}.dist-info/"
    metadata = {name for name in names if name.startswith(info)}
    assert names - metadata == sources | PARITY_DATA | {"pytest_parity.py"}
    assert f"{info}licenses/LICENSE" in metadata
    assert parity_wheel.stat().st_size < 1e6
    with zipfile.ZipFile(parity_wheel) as archive:
        assert "[pytest11]" in archive.read(f"{info}entry_points.txt").decode()
        assert "t2t_" not in "".join(archive.read(f"{info}{name}").decode() for name in ("METADATA", "RECORD"))


def test_the_source_archive_of_parity_holds_what_its_wheel_is_built_from(parity_dist: Path, parity_wheel: Path):
    (path,) = parity_dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)  # no links
    names = {member.name.partition("/")[2] for member in members if member.isfile()}
    written = {name for name in names if name.startswith("torch_jax_parity.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    modules = {name for name in zipfile.ZipFile(parity_wheel).namelist() if ".dist-info/" not in name}
    assert names - written == modules | {"pyproject.toml", "README.md", "LICENSE"}


def test_the_source_archive_holds_what_the_wheel_is_built_from_and_nothing_else(dist: Path, wheel: Path):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)
    names = {member.name.partition("/")[2] for member in members if member.isfile()}
    written = {name for name in names if name.startswith("t2t_vit.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    modules = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names - written == modules | (set(NEEDED) - {"action.yml"}) | {"constraints.txt"}


def test_each_build_gives_the_same_wheel(wheel: Path, tmp_path: Path):
    """From the sources and from the source archive, whatever the times of the files."""
    sources = copy_sources(tmp_path / "elsewhere")
    for path in sources.rglob("*.py"):
        os.utime(path, (0, 1_700_000_000))
    (again,) = build(sources, tmp_path / "dist", "--wheel").glob("*.whl")
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()
    assert {entry.date_time for entry in zipfile.ZipFile(wheel).infolist()} == {time.gmtime(EPOCH)[:6]}


# ---- installed ----


def test_it_works_where_the_sources_are_not(installed: CleanEnv, tmp_path: Path):
    code = (
        "import importlib.metadata, parity, t2t_common, t2t_config, t2t_jax, t2t_parity, t2t_torch, pytest_parity\n"
        "from t2t_config.class_names import imagenet_classes\n"
        "print(parity.__file__, len(imagenet_classes()), importlib.metadata.version('t2t-vit'))"
    )
    place, classes, version = installed.python("-c", code, cwd=tmp_path).stdout.split()
    assert Path(place).is_relative_to(installed.bin.parent)
    assert (classes, version) == ("1000", PROJECT["version"])
    assert "Traps, measured" in installed.python("-m", "parity", "doctor", cwd=tmp_path).stdout
    assert (
        "usage: python -m t2t_torch.predict"
        in installed.python("-m", "t2t_torch.predict", "--help", cwd=tmp_path).stdout
    )
    check = ("check", "t2t_vit_7", "--img-size", "32", "--level", "forward", "--html", "report.html")
    assert "EQUAL" in installed.python("-m", "parity", *check, cwd=tmp_path).stdout
    assert "<style>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_pytest_finds_the_plugin(installed: CleanEnv, tmp_path: Path):
    assert "--parity-html" in installed.python("-m", "pytest", "--help", cwd=tmp_path).stdout


PAIR = """
import numpy as np
import torch
from flax import nnx
import parity

def layer_norm(epsilon=1e-5):
    torch_model, jax_model = torch.nn.LayerNorm(8), nnx.LayerNorm(8, epsilon=epsilon, rngs=nnx.Rngs(0))
    parity.torch_to_jax(torch_model, jax_model)
    return parity.Pair(torch_model, jax_model, np.random.RandomState(0).standard_normal((4, 8)))

def wrong():
    return layer_norm(1e-6)

def test_the_port(parity):
    pair = layer_norm()
    parity.assert_parity(pair.torch_model, pair.jax_model, pair.inputs)
"""


def test_parity_alone_proves_a_pair(alone: CleanEnv, tmp_path: Path):
    """As a function, on the command line, and in pytest."""
    (tmp_path / "test_mine.py").write_text(PAIR)
    code = (
        "import parity, test_mine\n"
        "pair = test_mine.layer_norm()\n"
        "print(parity.__file__, parity.check(pair.torch_model, pair.jax_model, pair.inputs).verdict)"
    )
    place, verdict = alone.python("-c", code, cwd=tmp_path).stdout.split(maxsplit=1)
    assert Path(place).is_relative_to(alone.bin.parent)
    assert verdict.startswith("EQUAL: ")
    listed = alone.python("-m", "parity", "--help", cwd=tmp_path).stdout
    assert re.findall(r"^  (\w+) ", listed, flags=re.MULTILINE) == [
        "check",
        "power",
        "verify",
        "mcp",
        "report",
        "doctor",
    ]
    assert alone.python("-m", "parity", "--version", cwd=tmp_path).stdout == f"torch-jax-parity {PARITY['version']}\n"
    done = alone.python("-m", "parity", "check", "test_mine:layer_norm", "--html", "report.html", cwd=tmp_path)
    assert "EQUAL" in done.stdout
    assert "<style>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    done = alone.python("-m", "parity", "check", "test_mine:wrong", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "layer_norm: eps 1e-05 -> 1e-06" in done.stdout
    done = alone.python("-m", "pytest", "-q", "test_mine.py", "--parity-json", "reports", cwd=tmp_path)
    assert "1 passed" in done.stdout
    assert len(list((tmp_path / "reports").glob("*.json"))) == 1


def test_t2t_config_needs_the_standard_library_alone(wheel: Path, tmp_path: Path):
    env = CleanEnv(tmp_path / "env", outer=False)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import importlib, importlib.util, pkgutil, t2t_config\n"
        "for m in pkgutil.walk_packages(t2t_config.__path__, 't2t_config.'): importlib.import_module(m.name)\n"
        "print(t2t_config.model_config('t2t_vit_14').top1, importlib.util.find_spec('numpy'))"
    )
    assert env.python("-c", code, cwd=tmp_path).stdout.split() == ["81.5", "None"]
    refused = env.python("-c", "import t2t_common.evaluation.accuracy", cwd=tmp_path, check=False)
    assert "No module named 'numpy'" in refused.stderr


# ---- extras ----

LATE = (
    "t2t_torch/timm_models.py",
    "t2t_common/data/readers/array_record.py",
    "t2t_common/data/readers/parquet.py",
    "t2t_common/data/readers/tf_example.py",
    "t2t_common/data/readers/tf_record.py",
    "t2t_common/data/readers/write_shards.py",
    "t2t_parity/selftest/twins/equinox.py",
    "t2t_parity/selftest/twins/haiku.py",
)
"""Files that nothing imports before it needs them, and says what to install."""
NAMES = {**importlib.metadata.packages_distributions(), "parity": ["torch-jax-parity"]}


def distribution(name: str) -> str:
    return re.split(r"[\s<>=!~;\[]", name)[0].lower().replace("_", "-")


def extra(name: str) -> set[str]:
    """The distributions that an extra asks for, the base ones and those of other extras included."""
    found = {distribution(needed) for needed in PROJECT["dependencies"]}
    for needed in PROJECT["optional-dependencies"][name]:
        own = re.match(r"t2t-vit\[([\w,]+)\]", needed)
        found |= set().union(*map(extra, own[1].split(","))) if own else {distribution(needed)}
    return found


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(top-level module, whether it is imported with the file itself), less what is for type checkers only."""
    tree = ast.parse(path.read_text())

    def walk(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name.split(".")[0], at_once) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield (child.module or "").split(".")[0], at_once
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from walk(child, at_once and not inside)

    yield from walk(tree, at_once=True)


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("torch", ("t2t_config", "t2t_common", "t2t_torch")),
        ("jax", ("t2t_config", "t2t_common", "t2t_jax")),
        ("parity", PACKAGES),
        (None, ("parity",)),
    ],
)
def test_an_extra_asks_for_what_its_packages_import(name: str | None, packages: tuple[str, ...]):
    """Without a name: the distribution of parity."""
    optional = {distribution(given) for packages in PARITY["optional-dependencies"].values() for given in packages}
    if name is None:
        asked = set(map(distribution, PARITY["dependencies"]))
        anywhere = asked | optional
    else:
        asked = extra(name)
        anywhere = optional.union(*map(extra, PROJECT["optional-dependencies"]))
    for path in (path for package in packages for path in (ROOT / package).rglob("*.py")):
        for module, at_once in imports(path):
            if module in (*sys.stdlib_module_names, *PACKAGES, *packages):
                continue
            at_once = at_once and path.relative_to(ROOT).as_posix() not in LATE
            found = {distribution(given) for given in NAMES.get(module, [module])}
            assert found & (asked if at_once else anywhere), f"{path} imports {module}, which {name} does not ask for"


def test_versions_agree():
    version = PROJECT["version"]
    assert PARITY["version"] == version
    assert f"torch-jax-parity=={version}" in PROJECT["optional-dependencies"]["parity"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
