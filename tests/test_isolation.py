"""What may import what: packages, folders and files without a circle; and the mirror: both models are built alike."""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import torch
from flax import nnx

import parity
import t2t_jax
import t2t_torch
from parity.carry.rules import layer_rules
from t2t_config import MODELS

ROOT = Path(__file__).parents[1]
ALONE = {"t2t_torch.timm_models"}
"""Needs timm, which is not installed here; tests/timm runs where JAX is not."""


def imported(*modules: str) -> set[str]:
    """Top-level packages in memory after importing `modules` in a process of their own."""
    code = f"import sys, importlib\nfor m in {modules}: importlib.import_module(m)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.split(".")[0] for name in done.stdout.split()}


def modules_of(package: str) -> list[str]:
    """All importable modules below a package, by dotted name; `__main__` left out."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [name for name in names if not name.endswith("__main__") and name not in ALONE]


def files_of(package: str) -> dict[str, Path]:
    """Every file of a package, by dotted name."""
    paths = sorted((ROOT / package).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


# ---- arrows ----


def test_t2t_config_imports_the_standard_library_only():
    modules = modules_of("t2t_config")
    assert {"t2t_config", "t2t_config.weights.hub", "t2t_config.weights.download"} <= set(modules)
    found = imported(*modules) - imported()  # less what the interpreter loads itself, for editable installs
    assert "t2t_config" in found
    assert found <= sys.stdlib_module_names | {"t2t_config"}


def test_t2t_common_imports_no_framework():
    found = imported(*modules_of("t2t_common"))
    assert {"t2t_common", "t2t_config", "PIL", "numpy"} <= found
    assert not {"torch", "jax", "jaxlib", "flax", "t2t_torch", "t2t_jax", "t2t_parity", "parity"} & found


def test_t2t_jax_never_imports_torch():
    modules = modules_of("t2t_jax")
    assert {"t2t_jax.train", "t2t_jax.evaluate", "t2t_jax.checkpoint"} <= set(modules)
    found = imported(*modules)
    assert {"jax", "flax"} <= found
    assert not {"torch", "torchvision", "t2t_torch", "parity"} & found


def test_t2t_torch_never_imports_jax():
    found = imported(*modules_of("t2t_torch"))
    assert "torch" in found
    assert not {"jax", "jaxlib", "flax", "optax", "orbax", "t2t_jax", "parity"} & found


def test_parity_knows_no_model():
    """Nor anything else of T2T: it is a distribution of its own."""
    engine = modules_of("parity")
    assert {"parity.proof.check", "parity.carry.convert", "parity.runs.jax_side", "parity.report.report"} <= set(engine)
    assert not {name for name in imported(*engine) if name.startswith("t2t_")}
    for name in engine:  # nor later, inside a function
        tree = ast.parse(Path(importlib.import_module(name).__file__ or "").read_text())
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.startswith("t2t_")], name


def test_importing_parity_imports_no_framework():
    """Nor NumPy: what is exported is imported when it is first used."""
    found = imported("parity", "parity.__main__", "pytest_parity")
    assert {"parity", "pytest"} <= found
    assert not {"torch", "jax", "jaxlib", "flax", "optax", "numpy", "rich"} & found


def test_every_exported_name_is_found_where_the_table_says():
    """The table, the imports for type checkers, and `__all__` are the same names."""
    assert sorted(name for names in parity._WHERE.values() for name in names) == sorted(parity.__all__)
    block = next(node for node in ast.parse(Path(parity.__file__).read_text()).body if isinstance(node, ast.If))
    found = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    checked = {node.module: tuple(alias.name for alias in node.names) for node in found}
    assert checked == parity._WHERE
    for module, names in parity._WHERE.items():
        for name in names:
            assert getattr(parity, name) is getattr(importlib.import_module(module), name)
            assert importlib.util.find_spec(f"parity.{name}") is None, "a submodule would take the place of the name"
    assert set(parity.__all__) <= set(dir(parity))
    with pytest.raises(AttributeError, match="no attribute 'chek'"):
        parity.chek  # noqa: B018


# ---- circles ----

PACKAGES = ("t2t_config", "t2t_common", "t2t_torch", "t2t_jax", "t2t_parity", "parity")
FILES = {name: path for package in PACKAGES for name, path in files_of(package).items()}


@functools.cache
def imports(module: str, *, late: bool = True) -> frozenset[str]:
    """Files of ours that a file imports; `late`: also inside functions, where an import could hide a circle."""
    found: set[str] = set()
    for node in walk(ast.parse(FILES[module].read_text()), late=late):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & FILES.keys() or {node.module}
    return frozenset(found & FILES.keys() - {module})


def walk(tree: ast.AST, *, late: bool) -> Iterator[ast.AST]:
    """All nodes below; not those that are for type checkers alone, nor, unless `late`, those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not late:
            continue
        yield node
        yield from walk(node, late=late)


def folder_of(module: str) -> str:
    """The room of a file: its folder below the package; a file of the package's own folder is a room for itself."""
    parts = FILES[module].relative_to(ROOT).parts
    return "/".join(parts[:2])


def test_no_circle_between_files():
    order = list(graphlib.TopologicalSorter({module: imports(module) for module in FILES}).static_order())
    assert len(order) == len(FILES) > 300


def test_no_circle_between_folders():
    """Folders are layers: whoever reads one needs those below it, and never those above."""
    graph: dict[str, set[str]] = {}
    for module in FILES:
        others = {folder_of(other) for other in imports(module)}
        graph.setdefault(folder_of(module), set()).update(others - {folder_of(module)})
    assert list(graphlib.TopologicalSorter(graph).static_order())
    assert graph["parity/measure"] <= {"parity/carry"}
    assert {folder for folder in graph["t2t_jax/models"] if folder.startswith("t2t_jax")} == {"t2t_jax/ops"}


def test_circles_are_seen():
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())
    late = ast.parse("def f():\n    import parity\nif TYPE_CHECKING:\n    import t2t_jax")
    assert [node for node in walk(late, late=True) if isinstance(node, ast.Import)]
    assert not [node for node in walk(late, late=False) if isinstance(node, ast.Import)]


SLOW = {"parity", "t2t_jax", "t2t_torch"}
"""They import JAX or PyTorch, which takes seconds."""


def test_imports_inside_functions_are_of_what_is_slow_or_optional():
    """Commands import what is slow once they know what is asked; nothing else is imported late to hide a circle."""
    commands = {name for name in FILES if name.startswith(("parity.commands.", "t2t_parity."))}
    for module in FILES.keys() - commands:
        late = imports(module) - imports(module, late=False)
        assert {name.split(".")[0] for name in late} <= SLOW | {"t2t_common"}, module
        assert len(late) <= 1, module


def test_folders_and_files_are_small():
    """A folder is looked through at a glance, and so is a file."""
    for path in {path.parent for path in FILES.values()}:
        files = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
        assert len(files) <= 15, path
    for path in FILES.values():
        assert path.read_text().count("\n") <= 400, path


# ---- the mirror ----

MIRROR = (
    "models.layers",
    "models.transformer_block",
    "models.token_transformer",
    "models.token_performer",
    "models.t2t_vit",
    "models.t2t_vit_se",
    "models.t2t_vit_dense",
    "models.t2t_vit_ghost",
    "models.vit",
    "models.mix_token",
    "models.registry",
    "create",
    "weights.adapt",
    "training.mixup",
    "training.random_erasing",
    "training.loss",
)
TORCH_LAYERS = {"Linear", "LayerNorm", "Conv", "Dropout", "GELU", "Identity", "Sequential", "Unfold", "Activation"}
"""Written in t2t_jax/models/layers.py so that they mean what PyTorch's own mean, with what flax lacks."""


def classes(module: str) -> dict[str, type]:
    """Public classes that a module defines itself."""
    found = inspect.getmembers(importlib.import_module(module), inspect.isclass)
    return {name: cls for name, cls in found if cls.__module__ == module and not name.startswith("_")}


@pytest.mark.parametrize("file", MIRROR)
def test_mirror_files_hold_the_same_classes(file: str):
    ours, theirs = classes(f"t2t_torch.{file}"), classes(f"t2t_jax.{file}")
    assert theirs.keys() - ours.keys() <= TORCH_LAYERS | {"Buffer", "PreLogits"}
    assert ours.keys() <= theirs.keys()
    functions = [
        {
            name
            for name, f in inspect.getmembers(importlib.import_module(f"{package}.{file}"), inspect.isfunction)
            if f.__module__ == f"{package}.{file}" and not name.startswith("_")
        }
        for package in ("t2t_torch", "t2t_jax")
    ]
    assert functions[0] - functions[1] <= {"init_weights"}
    assert functions[1] - functions[0] <= {"trunc_normal", "symmetric_uniform", "cubic_weights"}


@pytest.mark.parametrize("file", MIRROR)
def test_the_constructors_take_the_same_arguments(file: str):
    ours, theirs = classes(f"t2t_torch.{file}"), classes(f"t2t_jax.{file}")
    for name, cls in ours.items():
        mine, other = (inspect.signature(c.__init__).parameters for c in (cls, theirs[name]))
        extra = {"dtype", "param_dtype", "rngs", "spec"}
        assert list(mine) == [parameter for parameter in other if parameter not in extra], name
        for parameter, value in mine.items():
            assert value.default == other[parameter].default, (name, parameter)


def test_create_model_takes_the_same_arguments():
    ours, theirs = (inspect.signature(m.create_model).parameters for m in (t2t_torch, t2t_jax))
    assert list(ours) == [name for name in theirs if name not in ("dtype", "param_dtype", "rngs", "scan_blocks")]
    assert t2t_torch.list_models() == t2t_jax.list_models()


VITS = ["vit_small_patch16_224", "vit_base_patch32_224_in21k", "vit_deit_tiny_distilled_patch16_224"]


@pytest.mark.parametrize("name", [*(name for name in MODELS if name.startswith("t2t_")), *VITS])
def test_module_paths_and_tensors_are_identical(name: str):
    """Every module at the same path, of the same kind; every tensor with the same name up to its layer's leaf."""
    with torch.device("meta"):
        torch_model = t2t_torch.create_model(name, img_size=64)
    jax_model = nnx.eval_shape(lambda: t2t_jax.create_model(name, img_size=64))
    ours = dict(torch_model.named_modules())
    theirs = {".".join(map(str, path)): module for path, module in nnx.iter_modules(jax_model)}
    assert ours.keys() == theirs.keys()
    for path, module in ours.items():
        kind, other = type(module).__name__, type(theirs[path]).__name__
        twins = {"ModuleList": "List", "Conv2d": "Conv", "ReLU": "Activation", "Sigmoid": "Activation"}
        twins |= {"Tanh": "Activation"}
        if path == "pre_logits" and kind == "Sequential":
            assert other == "PreLogits"
        else:
            assert other == twins.get(kind, kind), path
    leaves = {}
    for path, module in theirs.items():
        for rule in layer_rules(module):
            leaves[f"{path}.{rule.jax}"] = f"{path}.{rule.torch}"
    tensors = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(jax_model))}
    assert {leaves.get(tensor, tensor) for tensor in tensors} == set(torch_model.state_dict())


def test_the_public_face():
    """Names that are used from outside."""
    for package, names in {
        t2t_torch: ("create_model", "list_models", "load_checkpoint"),
        t2t_jax: ("create_model", "list_models"),
        parity: ("torch_to_jax", "jax_to_torch", "check", "assert_parity", "Report", "Rules"),
    }.items():
        assert set(names) <= set(package.__all__)
        assert all(hasattr(package, name) for name in package.__all__)
    assert jax.config.jax_enable_x64 is False
