"""`flax.linen`: a module and its variables.

Names are those of the variables without their collection, `encoder.layer_0.Dense_0.kernel`. The rules go by the names
of the tensors inside a layer, since the layers of a compact module exist only while it runs.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import errors, nnx
from flax import linen as nn

from parity.adapters.layouts import attention, children_of, join, kernel, matrix, vector
from parity.adapters.weights import KeyPath, Weights, dotted, trained, values
from parity.carry.copies import linen_as_dtype
from parity.carry.program import Adapter, Program, Pure, Table, Trained
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


def linen(
    module: nn.Module,
    variables: Mapping[str, Any],
    *,
    train_kwargs: Mapping[str, Any] | None = None,
    train_module: nn.Module | None = None,
    mutable: bool | str | Sequence[str] = True,
    rngs: str | Sequence[str] = ("dropout",),
    **apply_kwargs: Any,
) -> LinenAdapter:
    """Present a `flax.linen` model to `check`, `torch_to_jax` and all that takes a `flax.nnx.Module`.

    Args:
        module: The module, unbound.
        variables: What `module.init` returned, with all collections (`params`, `batch_stats`, ...); may be abstract
            (`jax.eval_shape(module.init, ...)`) if weights are only carried over.
        apply_kwargs: Keyword arguments of every call, such as `deterministic=True` or `train=False`. `method=` chooses
            another method than `__call__`.
        train_kwargs: Keyword arguments in training mode, in place of those of the same name: `{"train": True}`. `{}` if
            the module is called in the same way. With `level="train"`, this or `train_module` is needed.
        train_module: The module in training mode, if the mode is one of its attributes: `Model(deterministic=False)`.
        mutable: The collections that training mode changes, as in `module.apply`; True: all but `params`.
        rngs: The names of the random streams in training mode.

    Returns:
        An adapter; its `variables` hold the weights that `torch_to_jax` gave it.

    Raises:
        ValueError: `module` is not a Linen module, or `variables` are not its variables.
    """
    if not isinstance(module, nn.Module):
        kind = f"the class {module.__name__}" if isinstance(module, type) else f"a {type(module).__name__}"
        raise ValueError(f"parity.linen takes a flax.linen module and its variables, not {kind} as the module")
    if train_module is not None and type(train_module) is not type(module):
        raise ValueError(
            f"train_module is a {type(train_module).__name__}, not a {type(module).__name__} with other attributes"
        )
    if train_kwargs is not None and not isinstance(train_kwargs, Mapping):
        raise ValueError(f"train_kwargs has to be a dict, not a {type(train_kwargs).__name__}")
    if isinstance(rngs, Mapping) or "rngs" in (train_kwargs or {}):
        raise ValueError('rngs are the names of the random streams, as rngs=("dropout",): parity makes their keys')
    variables = _checked(variables)
    if isinstance(mutable, bool):
        mutable = [name for name in variables if name != "params"] if mutable else []
    named, streams = ((x,) if isinstance(x, str) else tuple(x) for x in (mutable, rngs))
    if missing := [name for name in named if name not in variables]:
        raise ValueError(f"mutable names {missing[0]}, and the variables hold {', '.join(map(str, variables))}")
    if train_kwargs is None and train_module is None:
        return LinenAdapter(module, variables, apply_kwargs)
    training = Training(train_module or module, dict(train_kwargs or {}), named, streams)
    return LinenAdapter(module, variables, apply_kwargs, training)


@dataclasses.dataclass(frozen=True)
class Training:
    """How a module is run in training mode: see the arguments of `linen`."""

    module: nn.Module
    kwargs: Mapping[str, Any]
    mutable: Sequence[str]
    rngs: Sequence[str]


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

    def __init__(
        self,
        module: nn.Module,
        variables: Mapping[str, Any],
        apply_kwargs: Mapping[str, Any],
        training: Training | None = None,
    ) -> None:
        self.module, self.variables, self.apply_kwargs = module, variables, dict(apply_kwargs)
        self.training = training

    def as_nnx(self) -> Program:
        weights = self._weights()
        kinds = self._kinds()
        arrays = weights.arrays
        variables = {
            name: (trained(leaf) if kind == "params" else _kind(kind))(leaf)
            for (name, leaf), kind in zip(arrays.items(), kinds, strict=True)
        }
        pure = _Apply(self.module, weights.without_arrays(), self.apply_kwargs, self.training)
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
    """`module.apply`: in evaluation mode without random numbers and without new values of the variables."""

    def __init__(
        self,
        module: nn.Module,
        weights: Weights,
        apply_kwargs: Mapping[str, Any],
        training: Training | None,
        dtype: Any = None,
    ) -> None:
        self._module, self._weights, self._kwargs = module, weights, apply_kwargs
        self._training, self._dtype = training, dtype
        if training is None:
            self.no_training = _NO_TRAINING

    def __call__(self, arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        variables = self._weights.put(arrays)
        with (
            _explained(_SWITCH.format("draws random numbers"), _SWITCH.format("changes its variables")),
            nn.intercept_methods(self._first_state),
        ):
            return self._module.apply(variables, *args, **{**self._kwargs, **kwargs})

    def train(self, arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any], key: Any) -> Trained:
        how = self._training
        if how is None:
            return super().train(arrays, args, kwargs, key)
        rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(how.rngs)}
        options = {**self._kwargs, **kwargs, **how.kwargs}
        with _explained(_STREAMS, _MUTABLE), nn.intercept_methods(self._first_state):
            output, changed = how.module.apply(
                self._weights.put(arrays), *args, mutable=list(how.mutable), rngs=rngs, **options
            )
        return output, self._weights.held_by(changed)

    def in_dtype(self, dtype: Any) -> Pure:
        training = self._training
        if training is not None:
            training = dataclasses.replace(training, module=linen_as_dtype(training.module, dtype))
        return _Apply(linen_as_dtype(self._module, dtype), self._weights, self._kwargs, training, dtype)

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


_NO_TRAINING = (
    'level="train" needs what a call in training mode is given, as parity.linen(module, variables, train=False, '
    'train_kwargs={"train": True}); train_kwargs={} if nothing differs'
)

_SWITCH = "The module {}: pass what switches that off, as parity.linen(module, variables, deterministic=True)."

_STREAMS = "Name all the random streams of training mode, as parity.linen(..., rngs=('dropout', 'drop_path'))."

_MUTABLE = "Name all the collections that training mode changes, as parity.linen(..., mutable=['batch_stats'])."


@contextlib.contextmanager
def _explained(draws: str, changes: str) -> Iterator[None]:
    """Context manager that raises a ValueError for flax's errors on variables and random streams, with a remedy."""
    try:
        yield
    except errors.InvalidRngError as error:
        raise ValueError(f"{_line(error)} {draws}") from error
    except errors.ModifyScopeVariableError as error:
        raise ValueError(f"{_line(error)} {changes}") from error
    except (errors.ScopeCollectionNotFound, errors.ScopeVariableNotFoundError) as error:
        raise ValueError(f"{_line(error)} Pass all the variables that module.init returned.") from error
    except errors.ScopeParamNotFoundError as error:
        raise ValueError(f"{_line(error)} The variables are those of another module.") from error


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
