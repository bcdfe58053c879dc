"""`dm-haiku`: a transformed function, its parameters and, if it has one, its state.

Names are the module paths with dots, `mlp.linear_0.w` for `mlp/~/linear_0` and `w`. The rules go by the names of the
tensors inside a layer, since its modules exist only while it runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flax import nnx

from parity.adapters.layouts import attention, children_of, join, kernel, matrix, vector
from parity.adapters.weights import KeyPath, Weights, key_name, trained, values
from parity.carry.program import Adapter, Program, Pure, Table, Trained
from parity.carry.rules import LeafRule

RENAMED = {"b": "bias", "offset": "bias", "scale": "weight", "embeddings": "weight"}
"""Names of tensors in Haiku's layers, and in PyTorch's."""

AVERAGES = {"mean_ema": "running_mean", "var_ema": "running_var"}
"""Moving averages of a batch norm; the `average` of each is what evaluation uses."""


def haiku(
    transformed: Any,
    params: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
    *,
    train_kwargs: Mapping[str, Any] | None = None,
    **apply_kwargs: Any,
) -> HaikuAdapter:
    """Present a Haiku model to `check`, `torch_to_jax` and all that takes a `flax.nnx.Module`.

    In evaluation mode it runs without random numbers (`rng=None`).

    Args:
        transformed: What `hk.transform` or `hk.transform_with_state` returned.
        params: What its `init` returned; may be abstract if weights are only carried over.
        state: The state of `hk.transform_with_state`, the second thing that its `init` returned.
        train_kwargs: Keyword arguments in training mode, in place of those of the same name: `{"is_training": True}`.
            `{}` if the function is called in the same way. Needed with `level="train"`.
        apply_kwargs: Keyword arguments of every call, such as `is_training=False`.

    Returns:
        An adapter; its `params` and `state` hold the weights that `torch_to_jax` gave it.

    Raises:
        ValueError: `transformed` is not a transformed function, or `params` and `state` are not its own.
        ImportError: Haiku is not installed.
    """
    try:
        import haiku as hk
    except ModuleNotFoundError as error:
        raise ImportError("parity.haiku needs dm-haiku: pip install dm-haiku") from error

    if not isinstance(transformed, hk.Transformed | hk.TransformedWithState):
        kind = getattr(transformed, "__name__", type(transformed).__name__)
        raise ValueError(f"parity.haiku takes what hk.transform or hk.transform_with_state returned, not {kind}")
    with_state = isinstance(transformed, hk.TransformedWithState)
    if not isinstance(params, Mapping):
        two = ", the params and the state: write parity.haiku(transformed, *init)" if isinstance(params, tuple) else ""
        raise ValueError(f"params have to be the dict that init returned, not a {type(params).__name__}{two}")
    if with_state and state is None:
        raise ValueError("transform_with_state needs its state: write parity.haiku(transformed, params, state)")
    if not with_state and state is not None:
        raise ValueError("hk.transform has no state: write parity.haiku(transformed, params), or transform_with_state")
    if train_kwargs is not None and not isinstance(train_kwargs, Mapping):
        raise ValueError(f"train_kwargs has to be a dict, not a {type(train_kwargs).__name__}")
    return HaikuAdapter(transformed, params, state, apply_kwargs, train_kwargs)


class HaikuAdapter(Adapter):
    """A transformed function, its `params` and its `state` (None: it has none)."""

    def __init__(
        self,
        transformed: Any,
        params: Mapping[str, Any],
        state: Mapping[str, Any] | None,
        apply_kwargs: Mapping[str, Any],
        train_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.transformed, self.params, self.state, self.apply_kwargs = transformed, params, state, dict(apply_kwargs)
        self.train_kwargs = train_kwargs

    def as_nnx(self) -> Program:
        params, state = self._weights()
        variables = {name: trained(leaf)(leaf) for name, leaf in params.arrays.items()}
        variables |= {name: nnx.BatchStat(leaf) for name, leaf in state.arrays.items()}
        own = None if self.state is None else state.without_arrays()
        pure = _Apply(self.transformed, params.without_arrays(), own, self.apply_kwargs, self.train_kwargs)
        return Program(variables, pure, table(tuple(variables)), "haiku")

    def update(self, program: Program) -> None:
        (params, state), arrays = self._weights(), values(program)
        self.params = params.put(arrays)
        self.state = None if self.state is None else state.put(arrays)

    def _weights(self) -> tuple[Weights, Weights]:
        params = Weights.of(self.params, _name)
        taken = set(params.arrays)

        def name(path: KeyPath) -> str:
            return join("state", _name(path)) if _name(path) in taken else _name(path)

        return params, Weights.of(self.state or {}, name)


def _name(path: KeyPath) -> str:
    """Return the name of a parameter, without the methods in its path (`~`, `~forward`)."""
    parts = [part for key in path for part in key_name(key).split("/")]
    return ".".join(part for part in parts if not part.startswith("~"))


class _Apply(Pure):
    def __init__(
        self,
        transformed: Any,
        params: Weights,
        state: Weights | None,
        apply_kwargs: Mapping[str, Any],
        train_kwargs: Mapping[str, Any] | None,
    ) -> None:
        self._transformed, self._params, self._state = transformed, params, state
        self._kwargs, self._train_kwargs = apply_kwargs, train_kwargs
        if train_kwargs is None:
            self.no_training = _NO_TRAINING

    def __call__(self, arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return self._applied(arrays, None, args, {**self._kwargs, **kwargs})[0]

    def train(self, arrays: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any], key: Any) -> Trained:
        if self._train_kwargs is None:
            return super().train(arrays, args, kwargs, key)
        output, state = self._applied(arrays, key, args, {**self._kwargs, **kwargs, **self._train_kwargs})
        return output, {} if self._state is None else self._state.held_by(state)

    def _applied(self, arrays: Mapping[str, Any], key: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the output and the new state (None: it has none)."""
        apply = self._transformed.apply
        state = () if self._state is None else (self._state.put(arrays),)
        takes_key = "rng" in inspect.signature(apply).parameters  # not so after hk.without_apply_rng
        try:
            found = apply(self._params.put(arrays), *state, *((key,) if takes_key else ()), *args, **kwargs)
        except ValueError as error:
            if "non-None PRNGKey" not in str(error):
                raise
            if key is not None:
                raise ValueError("training mode draws random numbers: leave out hk.without_apply_rng") from error
            raise ValueError(
                "the model draws random numbers: pass what switches that off, as parity.haiku(transformed, params, "
                "is_training=False)"
            ) from error
        return found if state else (found, None)


_NO_TRAINING = (
    'level="train" needs what a call in training mode is given, as parity.haiku(transformed, params, state, '
    'is_training=False, train_kwargs={"is_training": True}); train_kwargs={} if nothing differs'
)


# Rules


def table(names: Sequence[str]) -> Table:
    """Return the rules for these names."""
    rules: list[LeafRule] = []
    for path, children in children_of(names).items():
        if {"query", "key", "value", "linear"} <= children:
            rules += attention(path, ("query", "key", "value", "linear"), weight="w", bias="b", in_out=True)
        if {"linear", "linear_1"} <= children:
            rules += _vanilla(path)
    alone = [name for name in names if _is_average(name) and not name.endswith(".average")]
    return Table([*rules, *(rule for name in names for rule in _leaf(name))], alone)


def _is_average(name: str) -> bool:
    return any(name.rpartition(".")[0].endswith(which) for which in AVERAGES)


def _leaf(name: str) -> Iterator[LeafRule]:
    path, _, leaf = name.rpartition(".")
    if leaf == "w":
        weight = join(path, "weight")
        yield from (*matrix(weight, name), *kernel(weight, name, out_in=True))
    elif leaf in RENAMED:
        yield from vector(join(path, RENAMED[leaf]), name)
    elif leaf == "average" and _is_average(name):
        layer, _, which = path.rpartition(".")
        yield from vector(join(layer, AVERAGES[which]), name)
    yield LeafRule(name, name)


def _vanilla(path: str) -> Iterator[LeafRule]:
    """Yield the rules of `hk.VanillaRNN` (with `double_bias`), whose two layers are those of `torch.nn.RNNCell`."""
    for side, layer in (("ih", "linear"), ("hh", "linear_1")):
        yield LeafRule(join(path, f"weight_{side}"), join(path, f"{layer}.w"), (1, 0))
        yield LeafRule(join(path, f"bias_{side}"), join(path, f"{layer}.b"))
