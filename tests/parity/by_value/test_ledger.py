"""Tensors paired by their values: any layout, parts on either side, stacks; what is ambiguous or alone is said."""

from __future__ import annotations

import time
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity.by_value.ledger import ledger_by_value
from parity.carry.convert import jax_arrays, jax_variables, torch_arrays
from parity.carry.entries import Ledger

D, HEADS, LAYERS = 8, 2, 3


class Tree(nnx.Module):
    """Tensors by dotted name."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            home: nnx.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(home, part):
                    setattr(home, part, Tree({}))
                home = getattr(home, part)
            setattr(home, leaf, nnx.Param(jnp.asarray(array)))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def paired(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], **options: bool) -> Ledger:
    """The ledger, after a test that it carries every tensor both ways."""
    jax_model = Tree(theirs)
    ledger = ledger_by_value({name: torch.tensor(x) for name, x in ours.items()}, jax_model, **options)
    found = jax_arrays(ledger, ours)
    for name, variable in jax_variables(jax_model).items():
        if name not in ledger.jax_only:
            np.testing.assert_array_equal(found[name], np.asarray(variable[...]), err_msg=name)
    back = torch_arrays(ledger, found)
    for name, array in ours.items():
        if name not in ledger.torch_only:
            np.testing.assert_array_equal(back[name], array, err_msg=name)
    return ledger


def test_layouts_heads_and_flips():
    square, conv, head = normal(D, D), normal(6, 4, 3, 3), normal(D, D, seed=1)
    ledger = paired(
        {"square": square, "conv": conv, "head": head, "bias": normal(D, seed=2)},
        {
            "a": square.T,
            "b": np.flip(conv.transpose(2, 3, 1, 0), (0, 1)),
            "c": head.reshape(HEADS, 4, D).transpose(0, 2, 1),
            "d": normal(D, seed=2).reshape(HEADS, 4),
        },
    )
    assert {entry.torch: entry.jax for entry in ledger} == {"square": "a", "conv": "b", "head": "c", "bias": "d"}
    assert [entry.axes for entry in ledger][:2] == [(1, 0), (2, 3, 1, 0)]
    assert ledger.notes == ()


def test_fused_in_jax_with_unequal_parts():
    q, k, v = normal(D, D), normal(4, D, seed=1), normal(4, D, seed=2)
    ledger = paired({"q": q, "k": k, "v": v}, {"qkv": np.concatenate([q.T, v.T, k.T], axis=1)})
    assert {e.torch: e.into for e in ledger} == {"q": ((1, 0, 8),), "v": ((1, 8, 12),), "k": ((1, 12, 16),)}


def test_fused_in_pytorch():
    fused = normal(3 * D, D)
    parts = {name: fused[i * D : (i + 1) * D].T.reshape(D, HEADS, 4) for i, name in enumerate("qkv")}
    ledger = paired({"in_proj": fused}, parts)
    assert {e.jax: e.out_of for e in ledger} == {n: ((0, i * D, (i + 1) * D),) for i, n in enumerate("qkv")}


@pytest.mark.parametrize("fused", [False, True])
def test_stacked_layers(fused: bool):
    ours = {f"h.{i}.{n}": normal(D, D, seed=10 * i + ord(n)) for i in range(LAYERS) for n in "qk"}
    ours |= {f"h.{i}.norm": np.ones(D, np.float32) for i in range(LAYERS)}
    layers = [[ours[f"h.{i}.{n}"].T for n in "qk"] for i in range(LAYERS)]
    stacks = {"qk": np.stack([np.concatenate(x, 1) for x in layers])} if fused else {}
    stacks |= {} if fused else {n: np.stack([x[j] for x in layers]) for j, n in enumerate("qk")}
    ledger = paired(ours, stacks | {"norm": np.ones((LAYERS, D), np.float32)})
    assert all(entry.jax_box[0] == (0, int(entry.torch[2]), int(entry.torch[2]) + 1) for entry in ledger)


def test_equal_values_are_told_apart_by_their_neighbours():
    ours = {"a.weight": np.ones(D, np.float32), "a.bias": normal(D), "b.weight": np.ones(D, np.float32)}
    ours["b.bias"] = normal(D, seed=1)
    ledger = paired(
        ours, {"x.s": ours["b.weight"], "x.t": ours["b.bias"], "y.s": ours["a.weight"], "y.t": ours["a.bias"]}
    )
    assert {e.torch: e.jax for e in ledger} == {"a.weight": "y.s", "a.bias": "y.t", "b.weight": "x.s", "b.bias": "x.t"}
    assert ledger.notes == ()


def test_what_neighbours_do_not_decide_is_said():
    ledger = paired({"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float32)}, {"p": np.zeros(3), "q": np.zeros(3)})
    assert ledger.notes == ("a, b: equal values, told apart by their names and order alone",)


def test_lower_precision():
    ours = normal(D, D)
    ledger = ledger_by_value({"w": torch.tensor(ours)}, Tree({"p": jnp.asarray(ours.T, jnp.bfloat16)}))
    assert [(entry.torch, entry.jax, entry.axes) for entry in ledger] == [("w", "p", (1, 0))]


def test_what_has_no_partner_is_listed():
    ours = {"w": normal(D, D), "lost": normal(5), "order": normal(6)}
    theirs = {"p": ours["w"].T, "new": normal(5, seed=1), "other": np.roll(ours["order"], 1)}
    with pytest.raises(ValueError, match="4 tensors have no partner") as error:
        paired(ours, theirs)
    assert all(f"{name} [" in str(error.value) for name in ("lost", "order", "new", "other"))
    ledger = paired(ours, theirs, partial=True)
    assert (ledger.torch_only, ledger.jax_only) == (("lost", "order"), ("new", "other"))
    assert any("in an order that no layout gives" in note for note in ledger.notes)


def test_one_wrong_number_is_no_partner():
    ours = normal(D, D)
    changed = ours.copy()
    changed[3, 4] = np.nextafter(changed[3, 4], np.float32(9))
    with pytest.raises(ValueError, match="have no partner"):
        paired({"w": ours}, {"p": changed})


def test_large_models_take_seconds():
    """5 million numbers in well under what sorting them would take (3 s here for 100 million)."""
    ours = {f"l.{i}": torch.tensor(normal(500, 500, seed=i)) for i in range(20)}
    theirs = Tree({f"p{i}": np.asarray(ours[f"l.{7 * i % 20}"]).T for i in range(20)})
    start = time.perf_counter()
    assert len(ledger_by_value(ours, theirs)) == 20
    assert time.perf_counter() - start < 20
