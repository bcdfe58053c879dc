"""`flax.linen`: a module and its variables.

Names are those of the variables without their collection, `encoder.layer_0.Dense_0.kernel`. The rules go by the names
of the tensors inside a layer, since the layers of a compact module exist only while it runs.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import errors, nnx
from flax import linen as nn

from parity.adapters.layouts import attention, children_of, join, kernel, matrix, vector
from parity.adapters.weights import KeyPath, Weights, dotted, trained, values
from parity.carry.copies import linen_as_dtype
from parity.carry.program import Adapter, Program, Pure, Table
from parity.carry.rules import LeafRule, gate_rules

COLLECTIONS = ("params", "batch_stats", "cache", "intermediates", "perturbations", "spectral_stats", "lora")
"""Collections of flax's own layers."""

RENAMED = {
    "scale": "weight",
    "embedding": "weight",
    "negative_slope": "weight",
    "mean": "running_mean",
    "var": "running_var",
    "bias": "bias",
}
"""Names of tensors in flax's layers, and in PyTorch's."""


def linen(module: nn.Module, variables: Mapping[str, Any], **apply_kwargs: Any) -> LinenAdapter:
    """Present a `flax.linen` model to `check`, `torch_to_jax` and all that takes a `flax.nnx.Module`.

    Args:
        module: The module, unbound.
        variables: What `module.init` returned, with all collections (`params`, `batch_stats`, ...); may be abstract
            (`jax.eval_shape(module.init, ...)`) if weights are only carried over.
        apply_kwargs: Keyword arguments of every call, such as `deterministic=True` or `train=False`. `method=` chooses
            another method than `__call__`.

    Returns:
        An adapter; its `variables` hold the weights that `torch_to_jax` gave it.

    Raises:
        ValueError: `module` is not a Linen module, or `variables` are not its variables.
    """
    if not isinstance(module, nn.Module):
        kind = f"the class {module.__name__}" if isinstance(module, type) else f"a {type(module).__name__}"
        raise ValueError(f"parity.linen takes a flax.linen module and its variables, not {kind} as the module")
    return LinenAdapter(module, _checked(variables), apply_kwargs)


def _checked(variables: Any) -> Mapping[str, Any]:
    if not isinstance(variables, Mapping):
        raise ValueError(
            f"parity.linen takes the variables that module.init returned, a dict, not a {type(variables).__name__}"
        )
    if "params" not in variables and not (variables and set(variables) <= set(COLLECTIONS)):
        names = ", ".join(map(str, list(variables)[:3])) or "nothing"
        raise ValueError(
            f"the variables hold {names}, and not params: if they are the params themselves, write "
            'parity.linen(module, {"params": params})'
        )
    return variables


class LinenAdapter(Adapter):
    """A `flax.linen` module and its `variables`."""

    def __init__(self, module: nn.Module, variables: Mapping[str, Any], apply_kwargs: Mapping[str, Any]) -> None:
        self.module, self.variables, self.apply_kwargs = module, variables, dict(apply_kwargs)

    def as_nnx(self) -> Program:
        weights = self._weights()
        kinds = self._kinds()
        arrays = weights.arrays
        variables = {
            name: (trained(leaf) if kind == "params" else _kind(kind))(leaf)
            for (name, leaf), kind in zip(arrays.items(), kinds, strict=True)
        }
        pure = _Apply(self.module, weights.without_arrays(), self.apply_kwargs)
        return Program(variables, pure, table(tuple(arrays)), f"linen {type(self.module).__name__}")

    def update(self, program: Program) -> None:
        self.variables = self._weights().put(values(program))

    def _weights(self) -> Weights:
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(self.variables)[0]]
        count = collections.Counter(map(_inner, paths))

        def name(path: KeyPath) -> str:
            inner = _inner(path)
            return inner if count[inner] == 1 or path[0].key == "params" else join(str(path[0].key), inner)

        return Weights.of(self.variables, name)

    def _kinds(self) -> list[str]:
        """Return the collection of every array, in order."""
        names = Weights.of(self.variables, lambda path: f"{path[0].key}/{dotted(path)}").names
        return [name.partition("/")[0] for name in names if name is not None]


def _inner(path: KeyPath) -> str:
    """Return a variable's name without its collection, and without the boxes of partitioned arrays."""
    return ".".join(str(key.key) for key in path[1:] if hasattr(key, "key"))


def _kind(collection: str) -> type[nnx.Variable[Any]]:
    return nnx.BatchStat if collection == "batch_stats" else nnx.Variable


class _Apply(Pure):
    """`module.apply` without random numbers and without new values of the variables."""

    def __init__(self, module: nn.Module, weights: Weights, apply_kwargs: Mapping[str, Any], dtype: Any = None) -> None:
        self._module, self._weights, self._kwargs, self._dtype = module, weights, apply_kwargs, dtype

    def __call__(self, arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        try:
            with nn.intercept_methods(self._first_state):
                return self._module.apply(self._weights.put(arrays), *args, **{**self._kwargs, **kwargs})
        except errors.InvalidRngError as error:
            raise ValueError(f"{_line(error)} {_SWITCH.format('draws random numbers')}") from error
        except errors.ModifyScopeVariableError as error:
            raise ValueError(f"{_line(error)} {_SWITCH.format('changes its variables')}") from error
        except (errors.ScopeCollectionNotFound, errors.ScopeVariableNotFoundError) as error:
            raise ValueError(f"{_line(error)} Pass all the variables that module.init returned.") from error
        except errors.ScopeParamNotFoundError as error:
            raise ValueError(f"{_line(error)} The variables are those of another module.") from error

    def in_dtype(self, dtype: Any) -> Pure:
        return _Apply(linen_as_dtype(self._module, dtype), self._weights, self._kwargs, dtype)

    def _first_state(
        self, method: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        """Let a cell that is made while the model runs start in `dtype`: it starts in the dtype of new parameters."""
        if (
            self._dtype is not None
            and isinstance(context.module, nn.RNN)
            and hasattr(context.module.cell, "param_dtype")
        ):
            object.__setattr__(context.module.cell, "param_dtype", self._dtype)
        return method(*args, **kwargs)


_SWITCH = "The module {}: pass what switches that off, as parity.linen(module, variables, deterministic=True)."


def _line(error: Exception) -> str:
    """Return the first line of a flax error without the address of its page."""
    return (str(error).strip().splitlines() or [""])[0].partition(" (https://")[0]


# Rules


def table(names: Sequence[str]) -> Table:
    """Return the rules for these names."""
    rules = [rule for path, children in children_of(names).items() for rule in _layer(path, children)]
    alone = [name for name in names if name.endswith("/sigma")]  # the norm that SpectralNorm computed last
    return Table([*rules, *(rule for name in names for rule in _leaf(name))], alone)


def _leaf(name: str) -> Iterator[LeafRule]:
    path, _, leaf = name.rpartition(".")
    if leaf == "kernel":
        weight = join(path, "weight")
        yield from (*matrix(weight, name), *kernel(weight, name, out_in=False))
    elif "/" in leaf:  # WeightNorm and SpectralNorm hold `fc/kernel/scale` and `fc/kernel/u` for the layer beside them
        *inside, kind = leaf.split("/")
        layer = ".".join([*path.split(".")[:-1], *inside[:-1], RENAMED.get(inside[-1], "weight")])
        yield from vector(f"{layer}_{'u' if kind == 'u' else 'g'}", name)
    elif leaf in RENAMED:
        yield from vector(join(path, RENAMED[leaf]), name)
    yield LeafRule(name, name)


def _layer(path: str, children: set[str]) -> Iterator[LeafRule]:
    """Yield the rules of the layers whose tensors lie in modules of their own."""
    if {"query", "key", "value", "out"} <= children:
        yield from attention(path, ("query", "key", "value", "out"), weight="kernel", bias="bias", in_out=True)
    for rule in _cell(children):
        yield dataclasses.replace(rule, torch=join(path, rule.torch), jax=join(path, rule.jax))


def _cell(children: set[str]) -> tuple[LeafRule, ...]:
    """Return the rules of a recurrent cell with these layers inside, relative to it."""
    if {f"{side}{gate}" for side in "ih" for gate in "ifgo"} <= children:
        return gate_rules(("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho"), biased="hh")
    if {f"{side}{gate}" for side in "ih" for gate in "rzn"} <= children:
        rules = gate_rules(("ir", "iz", "in"), ("hr", "hz", "hn"), biased="ih")
        inside = LeafRule("bias_hh", "hn.bias", None, (2, 3))  # it is added before the product with the reset gate
        return *(rule for rule in rules if not (rule.added and rule.part[0] == 2)), inside
    return gate_rules(("i",), ("h",), biased="ih") if {"i", "h"} == children else ()
