"""Make a port's file, as `verify` takes it, of a foreign pair: its JAX part, with weights by PyTorch's names."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.foreign.pairs.common import ForeignPair

PRELUDE = '''
from __future__ import annotations
import dataclasses, functools, math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

array = jnp.asarray

class Tree:
    """Weights by attributes and items, as those of a torch.nn.Module; None where there is nothing."""

    def __init__(self, weights, path=""):
        self._weights, self._path = weights, path

    def __getattr__(self, name):
        path = f"{self._path}.{name}".strip(".")
        if path in self._weights:
            return self._weights[path]
        if name == "in_channels":
            return self.weight.shape[1]
        if name in ("out_channels", "num_features"):
            return self.weight.shape[0]
        return Tree(self._weights, path) if any(x.startswith(path + ".") for x in self._weights) else None

    def __getitem__(self, name):
        return getattr(self, str(name))

    def __iter__(self):
        return iter([self[i] for i in range(len(self))])

    def __len__(self):
        prefix = f"{self._path}." if self._path else ""
        names = {x[len(prefix):].partition(".")[0] for x in self._weights if x.startswith(prefix)}
        return 1 + max(int(x) for x in names if x.isdigit())

    def named_modules(self):
        parts = [x.split(".") for x in self._weights]
        paths = {".".join(x[:i]) for x in parts for i in range(len(x))}
        return [(path, Tree(self._weights, path)) for path in paths]

def channels_last(kernel):
    return jnp.moveaxis(array(kernel), (0, 1), (-1, -2))

def dense(linear):
    weights = {"kernel": array(linear.weight).T}
    return weights if linear.bias is None else weights | {"bias": array(linear.bias)}

def conv(layer):
    weights = {"kernel": channels_last(layer.weight)}
    return weights if layer.bias is None else weights | {"bias": array(layer.bias)}

def norm(layer):
    return {"scale": array(layer.weight), "bias": array(layer.bias)}

@dataclasses.dataclass
class Side:
    kind: str
    model: Any
    weights: Any = None
    state: Any = None
    batched: bool = False
    kwargs: Any = dataclasses.field(default_factory=dict)
    takes: Any = ()
    returns: Any = None
    train: Any = None

    def __call__(self, *args, **kwargs):
        axes = self.takes or (None,) * len(args)
        args = [x if a is None else jnp.transpose(x, a) for x, a in zip(args, axes)]
        if self.kind == "linen":
            y = self.model.apply(self.weights, *args, **kwargs, **self.kwargs)
        elif self.kind == "equinox":
            y = (self.model if self.batched else jax.vmap(self.model))(*args)
        elif self.kind == "haiku" and self.state is None:
            y = self.model.apply(self.weights, None, *args, **kwargs)
        elif self.kind == "haiku":
            y = self.model.apply(self.weights, self.state, None, *args, **kwargs)[0]
        elif self.kind == "function":
            y = self.model(self.weights, *args, **kwargs)
        else:
            self.model.eval()
            y = self.model(*args)
        return y if self.returns is None else jnp.transpose(y, self.returns)
'''


def spec_of(pair: ForeignPair) -> str:
    module = Path(pair.file).stem
    return (
        f"from tests.foreign.pairs import {module} as pair\n"
        "def reference():\n    return pair.PAIR.torch_model(0)\n"
        "def inputs(seed):\n    return pair.PAIR.inputs(seed)\n"
    )


def port_of(pair: ForeignPair, bug: str = "") -> str:
    """Return the file of a port: what of the pair's file is JAX, and `port(weights)`."""
    kept, side = [], ""
    for node in ast.parse(Path(pair.file).read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PAIR":
            assert isinstance(node.value, ast.Call)
            side = next(ast.unparse(word.value) for word in node.value.keywords if word.arg == "jax_side")
        elif not _of_torch(node):
            kept.append(ast.unparse(node))
    return "\n".join([PRELUDE, *kept, f"def port(weights):\n    return ({side})(Tree(weights), {bug!r})\n"])


def _of_torch(node: ast.stmt) -> bool:
    """Whether a statement belongs to the PyTorch side, or imports what is in the prelude."""
    if isinstance(node, ast.ImportFrom):
        return bool(node.module) and (node.module.startswith(("tests.", "torch", "__future__")))
    if isinstance(node, ast.Import):
        return any(alias.name.startswith("torch") for alias in node.names)
    names = {x.id for x in ast.walk(node) if isinstance(x, ast.Name)}
    return bool(names & {"torch", "F", "normal", "integers", "randomize"})
