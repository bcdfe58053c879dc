"""Which call answers to which; and that nothing is left over in silence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from parity import Rules
from parity.pairing.match_calls import Pairing, pair_calls
from parity.recording.align import input_axes
from parity.runs.jax_side import JaxSide
from parity.runs.torch_side import TorchSide
from tests.support.parity.pairs import FlaxTwice, carried, images, micro, resnet, text, twice


def paired(
    torch_model: torch.nn.Module,
    jax_model: nnx.Module,
    *arrays: np.ndarray,
    rules: Rules | None = None,
    whole: bool = False,
) -> Pairing:
    axes = [input_axes(x.ndim) for x in arrays]
    sides = TorchSide.of(torch_model, "float64"), JaxSide.of(jax_model, "float64", axes)
    return pair_calls(*sides, arrays, rules or Rules(), whole=whole)


def test_every_module_of_ours_has_a_partner():
    torch_model, jax_model = micro()
    pairing = paired(torch_model, jax_model, images(1, 3, 32, 32))
    assert pairing.unpaired == ()
    assert {pair.torch[0] for pair in pairing.pairs} == {name for name, _ in torch_model.named_modules()} - {
        "blocks",  # lists are never called
        *(f"blocks.{i}.attn.attn_drop" for i in range(2)),  # nor is what fused attention has no use for
        "tokens_to_token.attention1.dp#2",
    }
    assert pairing.root.name == ""


def test_calls_of_one_module_are_told_apart():
    pairing = paired(*twice(), images(3, 6), images(3, 6))
    assert [pair.name for pair in pairing.pairs] == ["fc", "fc#2", "norm", ""]


def test_as_a_whole_only_the_model_itself_is_paired():
    torch_model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    params = [{"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.float32)}]
    adapter = parity.function(lambda p, x: jax.nn.relu(x @ p[0]["w"] + p[0]["b"][None]), params)
    pairing = paired(torch_model, adapter.as_nnx(), images(2, 4), whole=True)
    assert [pair.name for pair in pairing.pairs] == [""]
    assert pairing.unpaired == ()


def test_layouts_are_found():
    pairing = paired(*resnet(), images(2, 3, 8, 8))
    axes = {pair.name: (*pair.input_axes, *pair.output_axes) for pair in pairing.pairs}
    assert axes["conv"] == axes["bn2"] == ((0, 2, 3, 1),) * 2  # 8 channels, 4 x 4 pixels
    assert axes["fc"] == (None, None)
    assert axes[""] == ((0, 2, 3, 1), None)


def test_what_holds_no_tensor_may_lack_a_partner():
    assert paired(*resnet(), images(2, 3, 8, 8)).unpaired == ("relu (call 2) of PyTorch", "relu of PyTorch")


def test_integers_go_in_as_they_are():
    pairing = paired(*text(), np.array([[1, 2, 3]]))
    assert [pair.name for pair in pairing.pairs] == ["embed", "out", ""]


def test_modules_without_a_partner_are_all_listed():
    class Renamed(nnx.Module):
        def __init__(self) -> None:
            self.linear = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
            self.layer_norm = nnx.LayerNorm(6, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array, gate: jax.Array) -> jax.Array:
            return self.layer_norm(self.linear(x) * gate)

    torch_model, _ = twice()
    arrays = images(3, 6), images(3, 6)
    with pytest.raises(ValueError, match="5 modules cannot be compared") as error:
        paired(torch_model, Renamed(), *arrays)
    for problem in (
        "fc of PyTorch has no",
        "fc (call 2) of PyTorch",
        "norm of PyTorch",
        "linear of JAX",
        "layer_norm of JAX",
    ):
        assert problem in str(error.value)
    allowed = Rules(rename={"^norm$": "layer_norm"}, unpaired=["fc", "linear"])
    assert [pair.name for pair in paired(torch_model, Renamed(), *arrays, rules=allowed).pairs] == ["norm", ""]


def test_shapes_that_do_not_fit_are_all_told():
    class Wider(FlaxTwice):
        def __call__(self, x: jax.Array, gate: jax.Array) -> jax.Array:
            return super().__call__(jnp.concatenate((x, x)), jnp.concatenate((gate, gate)))

    _, good = twice()
    wider = Wider()
    nnx.update(wider, nnx.state(good))
    found = dict(paired(twice()[0], wider, images(3, 6), images(3, 6)).different)
    assert found.keys() == {"fc", "fc#2", "norm", ""}
    assert all(text == "shapes differ: [3, 6] in PyTorch, [6, 6] in JAX" for text in found.values())


def test_a_layout_rule_decides_before_all():
    torch_model, jax_model = resnet()
    x = images(2, 3, 8, 12)
    for axes in ((0, 2, 3, 1), (0, 3, 2, 1)):
        square = paired(torch_model, jax_model, images(2, 3, 8, 8), rules=Rules(layouts={"bn*": axes}))
        assert next(pair.output_axes for pair in square.pairs if pair.name == "bn1") == (axes,)
    [(name, text)] = paired(torch_model, jax_model, x, rules=Rules(layouts={"bn1": (0, 3, 2, 1)})).different
    assert name == "bn1"
    assert text.startswith("the layout rule (0, 3, 2, 1) does not turn [2, 8, 4, 6]")


def test_sections_hold_every_pair_once_and_keep_to_the_limit():
    pairing = paired(*twice(), images(3, 6), images(3, 6))
    tensor = 8 * 3 * 6
    for limit, sizes in ((1, [1, 1, 1, 1]), (4 * tensor, [2, 1, 1]), (1e9, [4])):
        sections = list(pairing.sections(limit))
        assert [len(section) for section in sections] == sizes
        assert [pair for section in sections for pair in section] == list(pairing.pairs)
    root = pairing.sections(1)
    assert {pair.name for pair in pairing.with_children([*root][-1])} == {"", "fc", "fc#2", "norm"}


def test_the_same_tensor_given_thrice_may_be_given_once():
    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = torch.nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attn(x, x, x, need_weights=False)[0]

    class FlaxOuter(nnx.Module):
        def __init__(self) -> None:
            self.attn = nnx.MultiHeadAttention(2, 6, decode=False, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.attn(x)

    pairing = paired(*carried(Outer(), nnx.eval_shape(FlaxOuter)), images(2, 5, 6))
    assert next(pair.inputs for pair in pairing.pairs if pair.name == "attn") == (0,)
