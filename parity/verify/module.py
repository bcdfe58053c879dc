"""Ports that return a module: PyTorch's weights are put into it as the ledger says, while JAX traces.

The ledger was made by `parity.verify.pair`, from the same file, in another process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from parity.carry.entries import Entry
from parity.carry.program import Adapter, Program
from parity.carry.rules import box_shape, slices


def made(port: Callable[[], Any]) -> tuple[nnx.Module, Callable[..., Any]]:
    """Return the module that `port()` makes, in evaluation mode, and the function that calls it.

    Raises:
        ValueError: It is no `flax.nnx.Module` and no adapter, or not followed by a function.
    """
    found = port()
    model, call = found if isinstance(found, tuple) and len(found) == 2 else (found, _called)
    if isinstance(model, Adapter):
        model = model.as_nnx()
    if not isinstance(model, nnx.Module) or not callable(call):
        raise ValueError(
            f"port() returned {type(found).__name__}: return a flax.nnx.Module, or (module, call) with "
            "call(module, *inputs); for another library write `def port(weights):`"
        )
    model.eval()
    return model, call


def _called(model: Any, *args: Any, **kwargs: Any) -> Any:
    return model(*args, **kwargs)


def as_function(port: Callable[[], Any], ledger: Sequence[Mapping[str, Any]]) -> Callable[..., Any]:
    """Return a port without arguments as a function of the weights, by PyTorch's names, and the inputs.

    Variables that are in no entry of the ledger keep their values, in the precision of the weights.
    """
    entries = [entry_of(fields) for fields in ledger]
    model, call = made(port)

    def run(weights: Mapping[str, jax.Array], *args: Any, **kwargs: Any) -> Any:
        given = filled(entries, weights)
        precision = next((x.dtype for x in given.values() if jnp.issubdtype(x.dtype, jnp.floating)), jnp.float32)
        graph, state = nnx.split(nnx.clone(model))
        held = {".".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(state)}
        for name, (_, leaf) in held.items():
            if name in given:
                leaf.set_value(given[name])
            elif jnp.issubdtype(leaf.dtype, jnp.floating):
                leaf.set_value(leaf[...].astype(precision))
        whole = nnx.merge(graph, nnx.from_flat_state([(path, leaf) for path, leaf in held.values()]))
        _compute_in(whole, precision)
        return call(whole, *args, **kwargs)

    return run


def _compute_in(model: nnx.Module, precision: Any) -> None:
    """Let every layer that is told to compute in float32 compute in the precision of the run."""
    if isinstance(model, Program):
        model.compute_in(precision)
    for _, module in nnx.iter_modules(model):
        dtype = vars(module).get("dtype")
        if dtype is not None and jnp.dtype(dtype) == jnp.float32:
            module.dtype = precision  # type: ignore[attr-defined]


def filled(entries: Sequence[Entry], weights: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Return JAX's arrays by name, made of PyTorch's: transposed, split and put together as the entries say."""
    found: dict[str, jax.Array] = {}
    for entry in sorted(entries, key=lambda entry: entry.added):
        rule, array = entry.rule, jnp.asarray(weights[entry.torch])
        shape = entry.jax_shape if entry.index is None else entry.jax_shape[1:]
        array = array[slices(entry.torch_box)]
        array = array.reshape(rule.split) if rule.split else array
        array = array if rule.axes is None else array.transpose(rule.axes)
        array = jnp.flip(array, rule.flip) if rule.flip else array
        array = array.reshape(box_shape(shape, entry.into))
        if entry.added:
            found[entry.jax] = found[entry.jax] + array
        elif entry.jax_box:
            whole = found.get(entry.jax, jnp.zeros(entry.jax_shape, array.dtype))
            found[entry.jax] = whole.at[slices(entry.jax_box)].set(array)
        else:
            found[entry.jax] = array
    return found


def entry_of(fields: Mapping[str, Any]) -> Entry:
    """Return the entry that `dataclasses.asdict` and JSON have made lists of."""
    names = {field.name for field in dataclasses.fields(Entry)}
    return Entry(**{name: _tuples(value) for name, value in fields.items() if name in names})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
