"""`equinox`: a model and, if it has one, its state.

Names are the paths of attributes. The rules go by the types of the layers.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from parity.adapters.layouts import RANKS, attention, join, vector
from parity.adapters.weights import KeyPath, Weights, dotted, trained, values
from parity.carry.program import Adapter, Program, Pure, Table, Trained
from parity.carry.rules import LeafRule


def equinox(
    model: Any,
    batched: bool = False,
    *,
    state: Any = None,
    axis_name: str | None = None,
    train_kwargs: Mapping[str, Any] | None = None,
    **call_kwargs: Any,
) -> EquinoxAdapter:
    """Present an `equinox.Module` to `check`, `torch_to_jax` and all that takes a `flax.nnx.Module`.

    It runs in inference mode, in training mode without (`equinox.nn.inference_mode(model, value=False)`). If its
    `__call__` takes a `key`, it is given one in training mode, another one for every example, and else None.

    Args:
        model: The model. By default it takes one example, and is mapped (`jax.vmap`) over the first axis of every
            array among the inputs.
        batched: Whether the model takes the whole batch itself.
        state: The `equinox.nn.State` of a model that has one, called as `model(*inputs, state)`; what
            `equinox.nn.make_with_state` returned beside the model.
        axis_name: The name of the mapped axis. Default: that of the model's `BatchNorm` layers, or "batch".
        train_kwargs: Keyword arguments in training mode, in place of those of the same name.
        call_kwargs: Keyword arguments of every call, such as `enable_dropout=False`.

    Returns:
        An adapter; its `model` and `state` hold the weights that `torch_to_jax` gave it.

    Raises:
        ValueError: `model` is not a callable Equinox module, or has a state that is not given.
        ImportError: Equinox is not installed.
    """
    try:
        import equinox as eqx
    except ModuleNotFoundError as error:
        raise ImportError("parity.equinox needs equinox: pip install equinox") from error

    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[1], eqx.nn.State):
        raise ValueError("this is a model with its state: write parity.equinox(model, state=state)")
    if not isinstance(model, eqx.Module) or not callable(model):
        kind = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise ValueError(f"parity.equinox takes a callable equinox.Module, not {kind}")
    if state is not None and not isinstance(state, eqx.nn.State):
        raise ValueError(f"state is a {type(state).__name__}, not an equinox.nn.State")
    if state is None and any(_is_index(x) for x in jax.tree.leaves(model, is_leaf=_is_index)):
        raise ValueError("the model has a state: write parity.equinox(model, state=state), of eqx.nn.make_with_state")
    if train_kwargs is not None and not isinstance(train_kwargs, Mapping):
        raise ValueError(f"train_kwargs has to be a dict, not a {type(train_kwargs).__name__}")
    how = _How(batched, axis_name or _axis_name(model), call_kwargs, train_kwargs or {})
    return EquinoxAdapter(model, state, how)


@dataclasses.dataclass(frozen=True)
class _How:
    """How a model is called: see the arguments of `equinox`."""

    batched: bool
    axis_name: str
    call_kwargs: Mapping[str, Any]
    train_kwargs: Mapping[str, Any]


def _axis_name(model: Any) -> str:
    import equinox as eqx

    named = (layer.axis_name for _, layer in _layers(model) if isinstance(layer, eqx.nn.BatchNorm))
    return next((name for name in named if isinstance(name, str)), "batch")


def _is_index(leaf: Any) -> bool:
    import equinox as eqx

    return isinstance(leaf, eqx.nn.StateIndex)


class EquinoxAdapter(Adapter):
    """An Equinox `model` and its `state` (None: it has none)."""

    def __init__(self, model: Any, state: Any, how: _How) -> None:
        self.model, self.state, self._how = model, state, how

    def as_nnx(self) -> Program:
        weights, own = self._weights(), self._state_weights()
        variables = {name: trained(leaf)(leaf) for name, leaf in weights.arrays.items()}
        if own is not None:
            variables |= {name: nnx.BatchStat(leaf) for name, leaf in own.arrays.items()}
        pure = _Call(weights.without_arrays(), None if own is None else own.without_arrays(), self._how)
        rules = table(self.model, tuple(variables))
        return Program(variables, pure, rules, f"equinox {type(self.model).__name__}")

    def update(self, program: Program) -> None:
        arrays, weights, own = values(program), self._weights(), self._state_weights()
        self.model = weights.put(arrays)
        self.state = None if own is None else own.put(arrays)

    def _weights(self) -> Weights:
        """Return the model's arrays, without the first values of its state, which may be in it too."""
        held = [path for path, _ in _indices(self.model)]

        def name(path: KeyPath) -> str | None:
            return None if any(path[: len(index)] == index for index in held) else dotted(path)

        weights = Weights.of(self.model, name)
        return dataclasses.replace(weights, parts=_gates(self.model))

    def _state_weights(self) -> Weights | None:
        """Return the arrays of the state, under the attribute that holds their index."""
        if self.state is None:
            return None
        names = {index.marker: dotted(path) for path, index in _indices(self.model)}
        markers = self.state.tree_flatten()[1]

        def name(path: KeyPath) -> str:
            first = markers[path[0].key]
            return ".".join([names.get(first, f"state_{path[0].key}"), *filter(None, [dotted(path[1:])])])

        return Weights.of(self.state, name)


def _indices(model: Any) -> list[tuple[KeyPath, Any]]:
    found = jax.tree_util.tree_flatten_with_path(model, is_leaf=_is_index)[0]
    return [(path, leaf) for path, leaf in found if _is_index(leaf)]


class _Call(Pure):
    def __init__(self, weights: Weights, state: Weights | None, how: _How) -> None:
        self._weights, self._state, self._how = weights, state, how

    def __call__(self, arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        import equinox as eqx

        model = eqx.nn.inference_mode(self._weights.put(arrays))
        given = {**self._how.call_kwargs, **kwargs}
        parameter = _key_of(model)
        if "key" not in given and parameter is not None and parameter.default is inspect.Parameter.empty:
            given["key"] = None
        return self._called(model, arrays, args, given)[0]

    def train(self, arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any], key: Any) -> Trained:
        import equinox as eqx

        model = eqx.nn.inference_mode(self._weights.put(arrays), value=False)
        given = {**self._how.call_kwargs, **kwargs, **self._how.train_kwargs}
        own = None if "key" in given or _key_of(model) is None else key
        output, state = self._called(model, arrays, args, given, own, training=True)
        return output, {} if self._state is None else self._state.held_by(state)

    def _called(
        self,
        model: Any,
        arrays: Mapping[str, Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        key: Any = None,
        *,
        training: bool = False,
    ) -> tuple[Any, Any]:
        """Return the output and, in training mode, the new state (None: it has none); `key` is split by examples."""
        import equinox as eqx

        state = () if self._state is None else (self._state.put(arrays),)
        leaves, structure = jax.tree.flatten((tuple(args), dict(kwargs)))
        axes = [0 if isinstance(leaf, jax.Array) and leaf.ndim else None for leaf in leaves]

        def one(moving: list[Any], key: Any) -> Any:
            given = iter(moving)
            whole = [leaf if axis is None else next(given) for leaf, axis in zip(leaves, axes, strict=True)]
            own_args, own_kwargs = jax.tree.unflatten(structure, whole)
            found = model(*own_args, *state, **own_kwargs, **({} if key is None else {"key": key}))
            return found if state and training else (found[0] if state else found, None)

        mapped = [leaf for leaf, axis in zip(leaves, axes, strict=True) if axis == 0]
        if self._how.batched or not mapped:
            return one(mapped, key)
        keys = None if key is None else jax.random.split(key, len(mapped[0]))
        try:
            # The state of a BatchNorm is that of the whole batch.
            outer = eqx.if_array(0), None
            return eqx.filter_vmap(one, axis_name=self._how.axis_name, out_axes=outer)(mapped, keys)
        except NameError as error:  # of JAX: a collective operation over an axis that does not exist
            line = str(error).partition(". ")[0]
            raise ValueError(
                f"{line}: write parity.equinox(model, axis_name=...) with the axis of the model"
            ) from error


def _key_of(model: Any) -> inspect.Parameter | None:
    """Return the argument `key` of the model; None if it has none."""
    return inspect.signature(type(model).__call__).parameters.get("key")


def _gates(model: Any) -> dict[str, int]:
    """Return the biases of GRUs, which are taken gate by gate: PyTorch adds a second one to two of the three."""
    import equinox as eqx

    cells = (path for path, layer in _layers(model) if isinstance(layer, eqx.nn.GRUCell) and layer.use_bias)
    return {join(path, "bias"): 3 for path in cells}


# Rules


def table(model: Any, names: Sequence[str]) -> Table:
    """Return the rules for a model whose arrays have these names."""
    layers = dict(_layers(model))
    rules: list[LeafRule] = []
    for path, layer in layers.items():
        for short in _short(path, layers):
            rules += (_at(rule, short, path) for rule in _rules(layer))
    known = {rule.jax for rule in rules}
    for name in names:
        path, _, leaf = name.rpartition(".")
        rules += [LeafRule(join(x, leaf), name) for x in _short(path, layers) if name not in known]
    return Table(rules, _alone(names), {path: type(layer) for path, layer in layers.items()})


def _layers(model: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all modules with their paths."""
    import equinox as eqx

    yield path, model
    inner = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda x: isinstance(x, eqx.Module) and x is not model)[
        0
    ]
    for keys, leaf in inner:
        if isinstance(leaf, eqx.Module) and not _is_index(leaf):
            yield from _layers(leaf, join(path, dotted(keys)))


def _short(path: str, layers: Mapping[str, Any]) -> list[str]:
    """Return the path, and without the attributes of Equinox's containers that PyTorch has not."""
    import equinox as eqx

    around = {"layers": eqx.nn.Sequential, "layer": eqx.nn.WeightNorm | eqx.nn.SpectralNorm}
    parts = path.split(".")
    kept = [
        part
        for i, part in enumerate(parts)
        if not (part in around and isinstance(layers.get(".".join(parts[:i])), around[part]))
    ]
    return list(dict.fromkeys([path, ".".join(kept)]))


def _at(rule: LeafRule, torch: str, jax: str) -> LeafRule:
    return dataclasses.replace(rule, torch=join(torch, rule.torch), jax=join(jax, rule.jax))


def _rules(layer: Any) -> Iterator[LeafRule]:
    """Yield the rules of one layer, with names relative to it."""
    import equinox as eqx

    nn = eqx.nn
    match layer:
        case nn.Linear():
            yield LeafRule("weight", "weight", (0, 1))
            yield from vector("bias", "bias")
        case nn.ConvTranspose():
            if layer.groups == 1:
                yield from (
                    LeafRule("weight", "weight", (1, 0, *range(2, 2 + n)), flip=tuple(range(2, 2 + n))) for n in RANKS
                )
            yield from vector("bias", "bias")
        case nn.Conv():
            yield LeafRule("weight", "weight")
            yield from vector("bias", "bias")
        case nn.WeightNorm():
            yield from vector(f"{layer.weight_name}_g", "g")
        case nn.SpectralNorm():
            yield LeafRule(f"{layer.weight_name}_u", "uv_index.0")
            yield LeafRule(f"{layer.weight_name}_v", "uv_index.1")
        case nn.PReLU():
            yield from vector("weight", "negative_slope")
        case nn.BatchNorm():
            held = "ema_state_index" if layer.mode == "ema" else "batch_state_index"
            yield LeafRule("running_mean", f"{held}.0")
            yield LeafRule("running_var", f"{held}.1")
        case nn.MultiheadAttention():
            names = ("query_proj", "key_proj", "value_proj", "output_proj")
            yield from attention("", names, weight="weight", bias="bias", in_out=False)
        case nn.LSTMCell():
            yield from _matrices()
            yield LeafRule("bias_ih", "bias")
            yield LeafRule("bias_hh", "bias", added=True)
        case nn.GRUCell():
            yield from _matrices()
            yield from (LeafRule("bias_ih", f"bias.{i}", part=(i, 3)) for i in range(3))
            yield from (LeafRule("bias_hh", f"bias.{i}", part=(i, 3), added=True) for i in range(2))
            yield LeafRule("bias_hh", "bias_n", part=(2, 3))


def _matrices() -> Iterator[LeafRule]:
    yield from (LeafRule(f"weight_{side}", f"weight_{side}") for side in ("ih", "hh"))


def _alone(names: Sequence[str]) -> list[str]:
    """Return the counters of batch norms, which PyTorch has not or does not use."""
    return [name for name in names if name.rpartition(".")[2] in ("ema_first_time_index", "batch_counter")]
