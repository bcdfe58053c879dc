"""Random trees of modules, the same in PyTorch and in flax, and how to fill them with random bits."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from flax import nnx
from hypothesis import strategies as st

from parity import Rules
from parity.carry.convert import jax_variables, to_numpy, to_tensor

Sizes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A layer, or a bare tensor ("param", "buffer"), with `sizes` as its maker below wants them."""

    kind: str
    sizes: Sizes


@dataclasses.dataclass(frozen=True)
class Branch:
    """A "module", "list", "sequential", "dict", "plain" dict, or "stack" of `len(children)` like ones."""

    form: str
    children: tuple[tuple[str, Tree], ...]


Tree = Leaf | Branch

LAYERS: dict[str, tuple[Callable[..., torch.nn.Module], Callable[..., nnx.Module]]] = {
    "linear": (
        lambda i, o, bias: torch.nn.Linear(i, o, bias=bool(bias)),
        lambda rngs, i, o, bias: nnx.Linear(i, o, use_bias=bool(bias), rngs=rngs),
    ),
    "general": (
        lambda i, o, bias: torch.nn.Linear(i, 2 * o, bias=bool(bias)),
        lambda rngs, i, o, bias: nnx.LinearGeneral(i, (2, o), use_bias=bool(bias), rngs=rngs),
    ),
    "conv1d": (
        lambda i, o, bias: torch.nn.Conv1d(i, o, 3, bias=bool(bias)),
        lambda rngs, i, o, bias: nnx.Conv(i, o, 3, use_bias=bool(bias), rngs=rngs),
    ),
    "conv2d": (
        lambda i, o, bias: torch.nn.Conv2d(2 * i, 2 * o, (3, 2), groups=2, bias=bool(bias)),
        lambda rngs, i, o, bias: nnx.Conv(2 * i, 2 * o, (3, 2), feature_group_count=2, use_bias=bool(bias), rngs=rngs),
    ),
    "conv3d": (
        lambda i, o, bias: torch.nn.Conv3d(i, o, (1, 2, 3), bias=bool(bias)),
        lambda rngs, i, o, bias: nnx.Conv(i, o, (1, 2, 3), use_bias=bool(bias), rngs=rngs),
    ),
    "layer norm": (
        lambda i, o, bias: torch.nn.LayerNorm(i, bias=bool(bias)),
        lambda rngs, i, o, bias: nnx.LayerNorm(i, use_bias=bool(bias), rngs=rngs),
    ),
    "group norm": (
        lambda i, o, bias: torch.nn.GroupNorm(i, i * o),
        lambda rngs, i, o, bias: nnx.GroupNorm(i * o, num_groups=i, rngs=rngs),
    ),
    "batch norm": (
        lambda i, o, bias: torch.nn.BatchNorm2d(i, affine=bool(bias)),
        lambda rngs, i, o, bias: nnx.BatchNorm(i, use_bias=bool(bias), use_scale=bool(bias), rngs=rngs),
    ),
    "rms norm": (lambda i, o, bias: torch.nn.RMSNorm(i), lambda rngs, i, o, bias: nnx.RMSNorm(i, rngs=rngs)),
    "embedding": (lambda i, o, bias: torch.nn.Embedding(i, o), lambda rngs, i, o, bias: nnx.Embed(i, o, rngs=rngs)),
    "attention": (
        lambda i, o, bias: torch.nn.MultiheadAttention(i * o, i, bias=bool(bias)),
        lambda rngs, i, o, bias: nnx.MultiHeadAttention(i, i * o, use_bias=bool(bias), decode=False, rngs=rngs),
    ),
}
"""Layer types of the rules -> how either framework makes one of (in, out, bias or not)."""


# ---- drawing ----

_LETTERS = st.text(st.characters(exclude_characters=".", exclude_categories=("Cs",)), min_size=1, max_size=3)
_ALIKE = ("a", "ab", "a_", "a_b", "b", "0", "1", "10", "weight", "kernel", "scale", "bias", "layers", "blocks", "mean")
_TAKEN = [torch.nn.Module(), torch.nn.ModuleDict(), torch.nn.ParameterDict(), nnx.Module(), nnx.Dict({}), nnx.List([])]
NAMES = (st.sampled_from(_ALIKE) | _LETTERS).filter(lambda name: not any(hasattr(x, name) for x in _TAKEN))
"""Of attributes: prefixes of each other, names of tensors, digits, any letters that both frameworks allow."""

_LAYERS = st.builds(
    Leaf, st.sampled_from(sorted(LAYERS)), st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 1))
)
_TENSORS = st.builds(Leaf, st.sampled_from(("param", "buffer")), st.lists(st.integers(0, 3), max_size=3).map(tuple))


def _numbered(children: list[Tree]) -> tuple[tuple[str, Tree], ...]:
    return tuple((str(i), child) for i, child in enumerate(children))


def _branches(inner: st.SearchStrategy[Tree], *, stacks: bool = True) -> st.SearchStrategy[Tree]:
    named = st.dictionaries(NAMES, inner | _TENSORS, min_size=1, max_size=3).map(lambda found: tuple(found.items()))
    modules = st.dictionaries(NAMES, inner, min_size=1, max_size=3).map(lambda found: tuple(found.items()))
    listed = st.lists(inner, min_size=1, max_size=3).map(_numbered)
    found = st.builds(Branch, st.just("module"), named)
    found |= st.builds(Branch, st.sampled_from(("dict", "plain")), modules)
    found |= st.builds(Branch, st.sampled_from(("list", "sequential")), listed)
    if stacks:
        flat = st.recursive(_LAYERS, lambda inner: _branches(inner, stacks=False), max_leaves=3)
        like = st.tuples(flat, st.integers(1, 3)).map(lambda drawn: _numbered([drawn[0]] * drawn[1]))
        found |= st.builds(Branch, st.just("stack"), like)
    return found


TREES: st.SearchStrategy[Branch] = st.dictionaries(
    NAMES, st.recursive(_LAYERS, _branches, max_leaves=6) | _TENSORS, min_size=1, max_size=4
).map(lambda found: Branch("module", tuple(found.items())))


# ---- building ----


def torch_tree(tree: Tree) -> torch.nn.Module:
    if isinstance(tree, Leaf):
        return LAYERS[tree.kind][0](*tree.sizes)
    match tree.form:
        case "list" | "stack":
            return torch.nn.ModuleList(torch_tree(child) for _, child in tree.children)
        case "sequential":
            return torch.nn.Sequential(*(torch_tree(child) for _, child in tree.children))
        case "dict" | "plain":
            return torch.nn.ModuleDict({name: torch_tree(child) for name, child in tree.children})
    module = torch.nn.Module()
    for name, child in tree.children:
        if isinstance(child, Leaf) and child.kind == "param":
            module.register_parameter(name, torch.nn.Parameter(torch.zeros(child.sizes)))
        elif isinstance(child, Leaf) and child.kind == "buffer":
            module.register_buffer(name, torch.zeros(child.sizes))
        else:
            module.add_module(name, torch_tree(child))
    return module


@functools.lru_cache(None)
def _layer(leaf: Leaf) -> tuple[Any, Any]:
    """Graph and abstract state of a layer: made once, for flax takes its time."""
    return nnx.split(nnx.eval_shape(lambda: LAYERS[leaf.kind][1](nnx.Rngs(0), *leaf.sizes)))


def flax_tree(tree: Tree, stack: Sizes = ()) -> Any:
    """Abstract: its tensors have shapes, with `stack` before them, and no numbers."""
    if isinstance(tree, Leaf):
        module = nnx.merge(*_layer(tree), copy=True)
        for variable in jax_variables(module).values():
            variable.set_value(jax.ShapeDtypeStruct((*stack, *variable.shape), variable.dtype))
        return module
    match tree.form:
        case "stack":
            return flax_tree(tree.children[0][1], (len(tree.children),))
        case "list":
            return nnx.List([_held(flax_tree(child, stack)) for _, child in tree.children])
        case "sequential":
            return nnx.Sequential(*(_held(flax_tree(child, stack)) for _, child in tree.children))
        case "dict":
            return nnx.Dict({name: _held(flax_tree(child, stack)) for name, child in tree.children})
        case "plain":
            return {name: flax_tree(child, stack) for name, child in tree.children}
    module = nnx.Module()
    for name, child in tree.children:
        if isinstance(child, Leaf) and child.kind in ("param", "buffer"):
            variable = nnx.Param if child.kind == "param" else nnx.Variable
            setattr(module, name, variable(jax.ShapeDtypeStruct((*stack, *child.sizes), jnp.float32)))
        else:
            setattr(module, name, _held(flax_tree(child, stack)))
    return module


def _held(value: Any) -> Any:
    """`value` as a module takes it for an attribute."""
    return nnx.data(value) if isinstance(value, dict) else value


def tree_rules(tree: Branch) -> Rules:
    """What these trees need besides the built-in rules: flax's Sequential has `layers`, stacks have to be named."""
    stacked, rename = {}, {}
    for torch_path, jax_path, branch in _paths(tree, "", ""):
        if branch.form == "stack":
            stacked[torch_path] = torch_path
        elif branch.form == "sequential":
            rename[rf"^{re.escape(jax_path)}\.(?=[0-9]+(\.|$))"] = f"{jax_path}.layers.".replace("\\", r"\\")
    return Rules(stacked=stacked, rename=rename)


def _paths(tree: Tree, torch_path: str, jax_path: str) -> Iterator[tuple[str, str, Branch]]:
    """Every branch with its path in PyTorch and in JAX, the outer ones first, as renames have to be applied."""
    if isinstance(tree, Leaf):
        return
    yield torch_path, jax_path, tree
    inside = f"{jax_path}.layers" if tree.form == "sequential" else jax_path
    for name, child in tree.children[: 1 if tree.form == "stack" else None]:
        path = torch_path if tree.form == "stack" else f"{torch_path}.{name}".removeprefix(".")
        yield from _paths(child, path, jax_path if tree.form == "stack" else f"{inside}.{name}".removeprefix("."))


# ---- random bits ----

DTYPES = {
    torch.float64: np.dtype(np.float64),
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
}


def random_bits(shape: Sizes, dtype: np.dtype, draw: np.random.RandomState) -> np.ndarray:
    """Any number of `dtype`, NaN of any payload and infinities too."""
    return np.frombuffer(draw.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


def fill_torch(module: torch.nn.Module, dtype: torch.dtype, seed: int) -> None:
    draw = np.random.RandomState(seed)
    module.to(dtype)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(to_tensor(random_bits(tuple(tensor.shape), DTYPES[dtype], draw)))


def fill_flax(module: nnx.Module, dtype: torch.dtype, seed: int) -> None:
    draw = np.random.RandomState(seed)
    for variable in jax_variables(module).values():
        variable.set_value(jnp.asarray(random_bits(variable.shape, DTYPES[dtype], draw)))


def torch_bits(module: torch.nn.Module) -> dict[str, tuple[Any, ...]]:
    state = module.state_dict()
    return {name: _bits(to_numpy(tensor)) for name, tensor in state.items() if tensor.is_floating_point()}


def flax_bits(module: nnx.Module) -> dict[str, tuple[Any, ...]]:
    return {name: _bits(np.asarray(variable[...])) for name, variable in jax_variables(module).items()}


def _bits(array: np.ndarray) -> tuple[Any, ...]:
    return array.shape, array.dtype, array.tobytes()
