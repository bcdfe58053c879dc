"""Leaf rules: their inverse, their shapes, and that each layer type computes the same after conversion."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from parity import LeafRule, Rules, build_ledger, torch_to_jax
from parity.carry.random_weights import randomize
from parity.carry.rules import layer_rules, matches
from parity.recording.align import channels_last
from tests.support.golden import rel_f
from tests.support.parity.pairs import images


@pytest.mark.parametrize("axes", [None, *itertools.permutations(range(3))])
def test_a_rule_loses_nothing(axes: tuple[int, ...] | None):
    rule = LeafRule("weight", "kernel", axes)
    array = images(2, 3, 4)
    there = rule.to_jax(array)
    assert rule.fits(array.shape, there.shape)
    back = rule.to_torch(there, array.shape)
    np.testing.assert_array_equal(back, array)
    assert there.flags.c_contiguous
    assert back.flags.c_contiguous


@st.composite
def rules_with_shapes(draw: st.DrawFn) -> tuple[LeafRule, tuple[int, ...], tuple[int, ...]]:
    """A rule of any kind, a shape of PyTorch's that it takes, and the shape of flax's tensor."""
    parts = draw(st.integers(1, 3))
    part = tuple(draw(st.lists(st.integers(0, 3), min_size=int(parts > 1), max_size=4)))
    axes = draw(st.none() | st.permutations(range(len(part))).map(tuple))
    moved = part if axes is None else tuple(part[axis] for axis in axes)
    reshape = draw(st.booleans())
    jax_shape = (math.prod(moved),) if reshape and draw(st.booleans()) else moved
    flip = tuple(draw(st.sets(st.integers(0, len(part) - 1)))) if part else ()
    rule = LeafRule("weight", "kernel", axes, (draw(st.integers(0, parts - 1)), parts), reshape, flip)
    return rule, (part[0] * parts, *part[1:]) if parts > 1 else part, jax_shape


@given(rules_with_shapes())
def test_any_rule_loses_nothing(found: tuple[LeafRule, tuple[int, ...], tuple[int, ...]]):
    """Scalars and empty tensors too; its parts, put together, are the whole."""
    rule, shape, jax_shape = found
    assert rule.fits(shape, jax_shape)
    array = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    back = []
    for i in range(rule.part[1]):
        of_part = dataclasses.replace(rule, part=(i, rule.part[1]))
        there = of_part.to_jax(array, jax_shape)
        assert (there.shape, there.flags.c_contiguous) == (jax_shape, True)
        back.append(of_part.to_torch(there, shape))
    np.testing.assert_array_equal(np.concatenate(back) if len(back) > 1 else back[0], array, strict=True)


def test_a_rule_knows_what_does_not_fit():
    rule = LeafRule("weight", "kernel", (1, 0))
    assert rule.fits((2, 3), (3, 2))
    assert not rule.fits((2, 3), (2, 3))
    assert not rule.fits((2, 3, 1), (3, 2))
    assert not rule.fits((), ())
    assert LeafRule("a", "b").fits((), ())
    assert LeafRule("a", "b", None, part=(0, 2)).fits((4, 2), (2, 2))
    assert not LeafRule("a", "b", None, part=(0, 2)).fits((5, 2), (2, 2))
    assert not LeafRule("a", "b", None, part=(0, 3)).fits((), ())
    assert not LeafRule("a", "b", None, part=(0, 3)).fits((4, 2), (1, 2))
    assert LeafRule("a", "b", (1, 0), part=(0, 3)).fits((6, 4), (4, 2))
    assert LeafRule("a", "b", None, part=(0, 3), reshape=True).fits((6, 2), (4,))
    assert not LeafRule("a", "b", reshape=True).fits((6, 2), (11,))


def test_a_flip_is_of_flaxs_axes():
    rule = LeafRule("a", "b", (1, 0), flip=(0,))
    array = images(2, 3)
    np.testing.assert_array_equal(rule.to_jax(array), array.T[::-1])
    np.testing.assert_array_equal(rule.to_torch(array.T[::-1], (2, 3)), array)
    assert not LeafRule("a", "b", flip=(2,)).fits((2, 3), (2, 3))


def test_only_a_rule_that_reshapes_does():
    array = images(2, 3)
    assert LeafRule("a", "b").to_jax(array, (6,)).shape == (2, 3)
    assert LeafRule("a", "b", reshape=True).to_jax(array).shape == (2, 3)
    np.testing.assert_array_equal(LeafRule("a", "b", (1, 0), reshape=True).to_jax(array, (6,)), array.T.ravel())


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_put_together_are_the_whole(parts: int):
    array = images(6, 5)
    rules = [LeafRule("w", name, (1, 0), part=(i, parts)) for i, name in enumerate("qkv"[:parts])]
    parts = [rule.to_jax(array) for rule in rules]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), array.T)
    back = [rule.to_torch(part, array.shape) for rule, part in zip(rules, parts, strict=True)]
    np.testing.assert_array_equal(np.concatenate(back), array)


LAYERS = {
    "linear": (torch.nn.Linear(3, 5), lambda rngs: nnx.Linear(3, 5, rngs=rngs), (4, 3)),
    "square linear": (torch.nn.Linear(5, 5), lambda rngs: nnx.Linear(5, 5, rngs=rngs), (4, 5)),
    "conv1d": (torch.nn.Conv1d(3, 4, 3, padding=1), lambda rngs: nnx.Conv(3, 4, (3,), padding=1, rngs=rngs), (2, 3, 9)),
    "conv1d of integer size": (
        torch.nn.Conv1d(3, 4, 3, padding=1),
        lambda rngs: nnx.Conv(3, 4, 3, padding=1, rngs=rngs),
        (2, 3, 9),
    ),
    "conv2d": (
        torch.nn.Conv2d(3, 4, (3, 2), padding=1),
        lambda rngs: nnx.Conv(3, 4, (3, 2), padding=1, rngs=rngs),
        (2, 3, 8, 6),
    ),
    "conv2d, all sizes equal": (
        torch.nn.Conv2d(3, 3, 3, padding=1),
        lambda rngs: nnx.Conv(3, 3, (3, 3), padding=1, rngs=rngs),
        (2, 3, 8, 6),
    ),
    "conv2d, grouped": (
        torch.nn.Conv2d(6, 4, 3, padding=1, groups=2),
        lambda rngs: nnx.Conv(6, 4, (3, 3), feature_group_count=2, padding=1, rngs=rngs),
        (2, 6, 5, 7),
    ),
    "conv2d, depthwise": (
        torch.nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
        lambda rngs: nnx.Conv(6, 6, (3, 3), feature_group_count=6, use_bias=False, padding=1, rngs=rngs),
        (2, 6, 5, 7),
    ),
    "conv3d": (
        torch.nn.Conv3d(2, 3, 3, padding=1),
        lambda rngs: nnx.Conv(2, 3, (3, 3, 3), padding=1, rngs=rngs),
        (2, 2, 4, 5, 6),
    ),
    "transposed conv1d": (
        torch.nn.ConvTranspose1d(3, 4, 3, stride=2),
        lambda rngs: nnx.ConvTranspose(3, 4, 3, strides=2, padding="VALID", rngs=rngs),
        (2, 3, 5),
    ),
    "transposed conv2d": (
        torch.nn.ConvTranspose2d(3, 4, (3, 2), stride=(2, 1)),
        lambda rngs: nnx.ConvTranspose(3, 4, (3, 2), strides=(2, 1), padding="VALID", rngs=rngs),
        (2, 3, 5, 6),
    ),
    "transposed conv2d, padded, all sizes equal": (
        torch.nn.ConvTranspose2d(3, 3, 3, stride=2, padding=1, bias=False),
        lambda rngs: nnx.ConvTranspose(3, 3, (3, 3), strides=(2, 2), padding=1, use_bias=False, rngs=rngs),
        (2, 3, 5, 6),
    ),
    "transposed conv2d, the kernel as it is": (
        torch.nn.ConvTranspose2d(3, 3, 3, stride=2),
        lambda rngs: nnx.ConvTranspose(3, 3, (3, 3), strides=(2, 2), padding="VALID", transpose_kernel=True, rngs=rngs),
        (2, 3, 5, 6),
    ),
    "transposed conv3d": (
        torch.nn.ConvTranspose3d(2, 3, (1, 2, 3)),
        lambda rngs: nnx.ConvTranspose(2, 3, (1, 2, 3), padding="VALID", rngs=rngs),
        (2, 2, 4, 5, 6),
    ),
    "layer norm": (torch.nn.LayerNorm(6), lambda rngs: nnx.LayerNorm(6, epsilon=1e-5, rngs=rngs), (4, 6)),
    "group norm": (
        torch.nn.GroupNorm(2, 6),
        lambda rngs: nnx.GroupNorm(6, num_groups=2, epsilon=1e-5, rngs=rngs),
        (2, 6, 5, 4),
    ),
    "batch norm": (
        torch.nn.BatchNorm2d(6).eval(),
        lambda rngs: nnx.BatchNorm(6, use_running_average=True, epsilon=1e-5, rngs=rngs),
        (2, 6, 5, 4),
    ),
    "instance norm": (
        torch.nn.InstanceNorm2d(6, affine=True),
        lambda rngs: nnx.InstanceNorm(6, epsilon=1e-5, rngs=rngs),
        (2, 6, 5, 4),
    ),
    "prelu": (torch.nn.PReLU(), lambda rngs: nnx.PReLU(), (4, 6)),
    "rms norm": (torch.nn.RMSNorm(6, eps=1e-6), lambda rngs: nnx.RMSNorm(6, epsilon=1e-6, rngs=rngs), (4, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_converted_layer_computes_the_same(name: str):
    """Function, not shape: the transpose of a square matrix has the right shape too."""
    torch_layer, make, shape = LAYERS[name]
    jax_layer = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    randomize(torch_layer)
    ledger = torch_to_jax(torch_layer, jax_layer)
    assert {entry.torch for entry in ledger} | set(ledger.torch_only) == set(torch_layer.state_dict())
    x = images(*shape).astype(np.float32)
    axes = channels_last(x.ndim) if x.ndim > 2 else (0, 1)
    expected = torch_layer(torch.from_numpy(x)).detach().numpy().transpose(axes)
    assert rel_f(jax_layer(jnp.asarray(x.transpose(axes))), expected) < 1e-6


class Spectral(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.fc = nnx.SpectralNorm(nnx.Linear(3, 4, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.fc(x, update_stats=False)


@pytest.mark.parametrize("hooked", [False, True])
def test_spectral_norm(hooked: bool):
    """flax makes one more step of the power iteration, so both agree once it has converged, up to float32."""
    around = torch.nn.utils.spectral_norm if hooked else torch.nn.utils.parametrizations.spectral_norm
    torch_model, model = torch.nn.ModuleDict({"fc": around(torch.nn.Linear(3, 4)).train()}), Spectral()
    x = images(2, 3).astype(np.float32)
    for _ in range(400):
        torch_model["fc"](torch.from_numpy(x))
    ledger = torch_to_jax(torch_model.eval(), model)
    assert "fc.layer_instance.kernel" in {entry.jax for entry in ledger}
    assert len(ledger.torch_only) == len(ledger.jax_only) == 1
    assert rel_f(model(jnp.asarray(x)), torch_model["fc"](torch.from_numpy(x)).detach().numpy()) < 1e-6


def test_a_linear_layer_into_many_axes():
    torch_layer = torch.nn.Linear(3, 8)
    jax_layer = nnx.eval_shape(lambda: nnx.LinearGeneral(3, (2, 4), rngs=nnx.Rngs(0)))
    randomize(torch_layer)
    torch_to_jax(torch_layer, jax_layer)
    x = images(5, 3).astype(np.float32)
    expected = torch_layer(torch.from_numpy(x)).detach().reshape(5, 2, 4)
    assert rel_f(jax_layer(jnp.asarray(x)), expected) < 1e-6


def test_embedding():
    torch_layer, jax_layer = torch.nn.Embedding(7, 3), nnx.Embed(7, 3, rngs=nnx.Rngs(0))
    torch_to_jax(torch_layer, jax_layer)
    tokens = np.array([[0, 6, 2]])
    np.testing.assert_array_equal(jax_layer(tokens), torch_layer(torch.from_numpy(tokens)).detach())


def test_fused_attention():
    torch_layer = torch.nn.MultiheadAttention(6, 2, batch_first=True)
    jax_layer = nnx.eval_shape(lambda: nnx.MultiHeadAttention(2, 6, decode=False, rngs=nnx.Rngs(0)))
    randomize(torch_layer)
    ledger = torch_to_jax(torch_layer, jax_layer)
    assert sorted(entry.part for entry in ledger if entry.torch == "in_proj_weight") == [(0, 3), (1, 3), (2, 3)]
    x = images(2, 5, 6).astype(np.float32)
    expected, _ = torch_layer(*[torch.from_numpy(x)] * 3)
    assert rel_f(jax_layer(jnp.asarray(x)), expected.detach()) < 1e-6


def test_the_parts_of_fused_attention():
    module = nnx.eval_shape(lambda: nnx.MultiHeadAttention(2, 6, decode=False, rngs=nnx.Rngs(0)))
    found = {rule.jax: rule for rule in layer_rules(module)}
    for i, name in enumerate(("query", "key", "value")):
        kernel, bias = found.pop(f"{name}.kernel"), found.pop(f"{name}.bias")
        assert kernel == LeafRule("in_proj_weight", f"{name}.kernel", (1, 0), (i, 3), reshape=True)
        assert bias == LeafRule("in_proj_bias", f"{name}.bias", None, (i, 3), reshape=True)
    assert found == {
        "out.kernel": LeafRule("out_proj.weight", "out.kernel", (1, 0), reshape=True),
        "out.bias": LeafRule("out_proj.bias", "out.bias"),
    }


def test_own_rules_come_before_the_built_in_ones():
    class Odd(nnx.Linear):
        """Keeps PyTorch's layout."""

    rules = Rules(leaves={Odd: (LeafRule("weight", "kernel"), LeafRule("bias", "bias"))})
    torch_layer, jax_layer = torch.nn.Linear(4, 4), Odd(4, 4, rngs=nnx.Rngs(0))
    torch_to_jax(torch_layer, jax_layer, rules=rules)
    np.testing.assert_array_equal(jax_layer.kernel[...], torch_layer.weight.detach())
    torch_to_jax(torch_layer, jax_layer)
    np.testing.assert_array_equal(jax_layer.kernel[...], torch_layer.weight.detach().T)


def test_renames_are_applied_in_order():
    rules = Rules(rename={r"^encoder\.": "", r"layer(\d)_": r"layers.\1."})
    assert rules.jax_path("encoder.layer3_conv") == "layers.3.conv"
    assert rules.jax_path("head") == "head"
    assert Rules(rename={"^": "model."}).jax_path("") == "model"


def test_positions_in_a_stack():
    rules = Rules(stacked={"net.blocks": "blocks"})
    assert rules.stack_index("net.blocks.12.attn.qkv") == ("blocks.attn.qkv", 12)
    assert rules.stack_index("net.blocks.3") == ("blocks", 3)
    assert rules.stack_index("other.blocks.3.attn") == ("other.blocks.3.attn", None)
    assert rules.stack_index("net_blocks.3.attn") == ("net_blocks.3.attn", None)
    assert rules.stack_index("net.blocks.3.a\nb") == ("blocks.a\nb", 3)


def test_what_lies_in_a_stack():
    """On PyTorch's side the list itself is outside (it computes nothing), on flax's side it is the layer."""
    rules = Rules(stacked={"net.blocks": "layers", "tail": "end"})
    for path in ("net.blocks.3", "net.blocks.3.attn", "tail.0"):
        assert rules.in_stack(path, torch_side=True)
        assert not rules.in_stack(path, torch_side=False)
    for path in ("layers", "layers.attn", "end"):
        assert rules.in_stack(path, torch_side=False)
        assert not rules.in_stack(path, torch_side=True)
    for path in ("net.blocks", "net.blocks2.0", "net", "head", "tail"):
        assert not rules.in_stack(path, torch_side=True)
    assert not rules.in_stack("layers2", torch_side=False)


def test_patterns_are_shell_style():
    assert matches("blocks.3.attn", ["*.attn"])
    assert not matches("blocks.3.attn.qkv", ["*.attn", "head"])


# ---- rules of single tensors ----


class Bare(nnx.Module):
    """Tensors that belong to no layer."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        for name, shape in shapes.items():
            setattr(self, name, nnx.Param(jnp.zeros(shape)))


def test_tensors_fuse_into_a_part():
    state = {f"h.{i}.{n}": torch.randn(4, 4) for i in range(2) for n in "qk"}
    rules = Rules(
        tensors=[
            LeafRule(r"h\.(\d+)\.q", r"qk\1", (1, 0), into=((1, 0, 4),)),
            LeafRule(r"h\.(\d+)\.k", r"qk\1", (1, 0), into=((1, 4, 8),)),
        ]
    )
    model = Bare(qk0=(4, 8), qk1=(4, 8))
    torch_to_jax(state, model, rules=rules)
    for i in range(2):
        expected = np.concatenate([state[f"h.{i}.{n}"].numpy().T for n in "qk"], axis=1)
        np.testing.assert_array_equal(getattr(model, f"qk{i}")[...], expected)


def test_tensors_in_a_stack():
    state = {f"h.{i}.w": torch.randn(3, 5) for i in range(2)}
    model = Bare(w=(2, 5, 3))
    torch_to_jax(state, model, rules=Rules(stacked={"h": "layers"}, tensors=[LeafRule("layers.w", "w", (1, 0))]))
    np.testing.assert_array_equal(model.w[...], np.stack([state[f"h.{i}.w"].numpy().T for i in range(2)]))


def test_an_exact_name_comes_before_a_pattern():
    rules = Rules(tensors=[LeafRule(r"(.*)", r"\1_"), LeafRule("a.b", "c")])
    assert [rule.jax for rule in rules.tensor_rules("a.b")] == ["c"]
    assert [rule.jax for rule in rules.tensor_rules("b")] == ["b_"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([LeafRule("a", "x"), LeafRule("b", "x")], "(a and b|b and a) of PyTorch both claim x"),
        ([LeafRule("a", "x", into=((0, 0, 2),)), LeafRule("b", "y")], r"a \[4\] does not fit x \[4\]"),
        ([LeafRule("a", "x", out_of=((0, 0, 2),), into=((0, 0, 2),)), LeafRule("b", "y")], "a of PyTorch is not whole"),
        ([LeafRule("a", "x"), LeafRule("b", "z")], "JAX has no tensor z"),
    ],
)
def test_tensors_that_do_not_fit_are_said(tensors, message):
    with pytest.raises(ValueError, match=message):
        build_ledger({"a": torch.zeros(4), "b": torch.zeros(4)}, Bare(x=(4,), y=(4,)), Rules(tensors=tensors))


def test_rules_print_as_the_lines_that_make_them():
    rules = Rules(
        rename={r"^h\.(\d+)\.": r"layers_\1."},
        leaves={nnx.Linear: (LeafRule("weight", "kernel"),)},
        torch_only=["mask"],
        tensors=[LeafRule(r"h\.(\d+)\.q", r"qk\1", (1, 0), into=((1, 0, 4),)), LeafRule("a", "b")],
    )
    for text in (str(rules), repr(rules)):
        assert eval(text, {"Rules": Rules, "LeafRule": LeafRule, "nnx": nnx}) == rules
    assert str(Rules()) == "Rules()"
    assert r'LeafRule(r"h\.(\d+)\.q", r"qk\1", (1, 0), into=((1, 0, 4),))' in str(rules)
    assert "\n" not in repr(rules)
    assert len(str(rules).splitlines()) > 5
