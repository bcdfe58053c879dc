"""The shortest form of rules: stacks, renames and patterns, with the same ledger as the list of all tensors."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import pytest
import torch
from flax import nnx

from parity import LeafRule, Rules, build_ledger
from parity.suggest.write import shortest

LAYERS = 11


class Attention(nnx.Module):
    def __init__(self) -> None:
        self.query, self.out = (nnx.Linear(4, 4, rngs=nnx.Rngs(0)) for _ in range(2))


class Layers(nnx.Module):
    def __init__(self) -> None:
        for i in range(LAYERS):
            setattr(self, f"layer_{i}", Attention())


class Tensors(nnx.Module):
    def __init__(self, **shapes: tuple[int, ...]) -> None:
        for name, shape in shapes.items():
            setattr(self, name, nnx.Param(jnp.zeros(shape)))


def torch_layers() -> torch.nn.Module:
    layer = torch.nn.ModuleDict({"q": torch.nn.Linear(4, 4), "o": torch.nn.Linear(4, 4)})
    return torch.nn.ModuleDict(
        {
            "h": torch.nn.ModuleList(
                [
                    layer,
                    *(
                        torch.nn.ModuleDict({"q": torch.nn.Linear(4, 4), "o": torch.nn.Linear(4, 4)})
                        for _ in range(LAYERS - 1)
                    ),
                ]
            )
        }
    )


def places(model: torch.nn.Module, jax_model: nnx.Module, rules: Rules) -> set[tuple[object, ...]]:
    return {(e.torch, e.jax, e.axes, e.torch_box, e.jax_box) for e in build_ledger(model, jax_model, rules)}


def test_layers_that_are_called_otherwise_are_two_renames():
    every = [
        LeafRule(f"h.{i}.{a}.{leaf}", f"layer_{i}.{b}.{other}", axes)
        for i in range(LAYERS)
        for (a, b), (leaf, other, axes) in itertools.product(
            [("q", "query"), ("o", "out")], [("weight", "kernel", (1, 0)), ("bias", "bias", None)]
        )
    ]
    model, jax_model = torch_layers(), Layers()
    found = shortest(model, jax_model, Rules(tensors=every))
    assert found.rename == {r"^h\.(\d+)\.q$": r"layer_\1.query", r"^h\.(\d+)\.o$": r"layer_\1.out"}
    assert not found.tensors
    assert places(model, jax_model, found) == places(model, jax_model, Rules(tensors=every))


def test_layers_in_another_order_stay_a_list():
    """Each layer is another one's partner, which no pattern says."""
    every = [
        LeafRule(f"h.{i}.{a}.{leaf}", f"layer_{(i + 1) % LAYERS}.{b}.{other}", axes)
        for i in range(LAYERS)
        for (a, b), (leaf, other, axes) in itertools.product(
            [("q", "query"), ("o", "out")], [("weight", "kernel", (1, 0)), ("bias", "bias", None)]
        )
    ]
    model, jax_model = torch_layers(), Layers()
    found = shortest(model, jax_model, Rules(tensors=every))
    assert places(model, jax_model, found) == places(model, jax_model, Rules(tensors=every))


@pytest.mark.parametrize("fused", [False, True])
def test_stacks_are_one_rule_for_all_layers(fused: bool):
    def into(i: int, part: int) -> tuple[tuple[int, int, int], ...]:
        return ((0, i, i + 1), (2, 4 * part, 4 * part + 4)) if fused else ((0, i, i + 1),)

    names = ("w", "w") if fused else ("q", "o")
    jax_model = Tensors(**dict.fromkeys(names, (LAYERS, 4, 8 if fused else 4)), bq=(LAYERS, 4), bo=(LAYERS, 4))
    every = [
        LeafRule(f"h.{i}.{a}.weight", name, (1, 0), reshape=True, into=into(i, part))
        for i in range(LAYERS)
        for part, (a, name) in enumerate(zip("qo", names, strict=True))
    ]
    every += [
        LeafRule(f"h.{i}.{a}.bias", f"b{a}", reshape=True, into=((0, i, i + 1),)) for i in range(LAYERS) for a in "qo"
    ]
    found = shortest(torch_layers(), jax_model, Rules(tensors=every))
    assert found.stacked == {"h": "h"}
    assert len(found.tensors) <= 4
    assert places(torch_layers(), jax_model, found) == places(torch_layers(), jax_model, Rules(tensors=every))
