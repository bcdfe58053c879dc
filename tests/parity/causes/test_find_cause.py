"""Naming the cause: for each mistake, JAX's tensor is computed here, and PyTorch's module has to tell what it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from parity.causes import enclosing, name_causes
from parity.causes.recordings import record
from parity.causes.switches.resize import resize
from parity.measure.gates import Row, rel_f
from parity.pairing.match_calls import Pair
from parity.recording.capture import Call
from tests.support.parity.named import ROOT, Function, Tensor, cause_of, double, draw, pair

LINEAR = double(torch.nn.Linear(6, 6))
CONV = double(torch.nn.Conv2d(4, 4, 3, stride=2, padding=1))
NORM = double(torch.nn.LayerNorm(8))
GROUP = double(torch.nn.GroupNorm(4, 8))
BATCH = double(torch.nn.BatchNorm2d(8))
TOKENS, IMAGE, CHANNELS = draw(2, 5, 6), draw(2, 4, 9, 9), draw(2, 8, 6, 6)
WIDE = draw(2, 5, 8)


def normalised(x: Tensor, variance: Tensor, eps: float = 1e-5) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (variance + eps).sqrt() * NORM.weight + NORM.bias


LEAVES = {
    "linear, kernel": (LINEAR, TOKENS, lambda x: x @ LINEAR.weight + LINEAR.bias, "kernel transposed"),
    "linear, no bias": (LINEAR, TOKENS, lambda x: x @ LINEAR.weight.T, "bias"),
    "linear, bias twice": (LINEAR, TOKENS, lambda x: LINEAR(x) + LINEAR.bias, "bias"),
    "linear, parts": (LINEAR, TOKENS, lambda x: LINEAR(x).roll(2, -1), "parts order"),
    "linear, in float32": (LINEAR, TOKENS, lambda x: LINEAR(x).float().double(), "float32 leak"),
    "linear, weight in bfloat16": (
        LINEAR,
        TOKENS,
        lambda x: x @ LINEAR.weight.bfloat16().double().T + LINEAR.bias,
        "bfloat16 leak",
    ),
    "conv, flipped": (
        CONV,
        IMAGE,
        lambda x: F.conv2d(x, CONV.weight.flip(2, 3), CONV.bias, 2, 1),
        "kernel flipped",
    ),
    "conv, height and width": (
        CONV,
        IMAGE,
        lambda x: F.conv2d(x, CONV.weight.transpose(2, 3), CONV.bias, 2, 1),
        "kernel transposed",
    ),
    "conv, in and out": (
        CONV,
        IMAGE,
        lambda x: F.conv2d(x, CONV.weight.transpose(0, 1), CONV.bias, 2, 1),
        "kernel transposed",
    ),
    "conv, off by one": (
        CONV,
        IMAGE,
        lambda x: F.conv2d(F.pad(x, (0, 2, 0, 2)), CONV.weight, CONV.bias, 2),
        "padding",
    ),
    "conv, reflected": (
        CONV,
        IMAGE,
        lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), CONV.weight, CONV.bias, 2),
        "padding",
    ),
    "layer norm, eps": (NORM, WIDE, lambda x: normalised(x, x.var(-1, keepdim=True, correction=0), 1e-6), "epsilon"),
    "layer norm, unbiased": (NORM, WIDE, lambda x: normalised(x, x.var(-1, keepdim=True)), "norm statistics"),
    "layer norm, no scale": (NORM, WIDE, lambda x: F.layer_norm(x, (8,), None, NORM.bias), "scale"),
    "group norm, groups": (GROUP, CHANNELS, lambda x: F.group_norm(x, 2, GROUP.weight, GROUP.bias), "groups"),
    "group norm, eps": (GROUP, CHANNELS, lambda x: F.group_norm(x, 4, GROUP.weight, GROUP.bias, 1e-6), "epsilon"),
    "batch norm, eps": (
        BATCH,
        CHANNELS,
        lambda x: F.batch_norm(x, BATCH.running_mean, BATCH.running_var, BATCH.weight, BATCH.bias, eps=1e-3),
        "epsilon",
    ),
    "batch norm, by the batch": (
        BATCH,
        CHANNELS,
        lambda x: F.batch_norm(x, None, None, BATCH.weight, BATCH.bias, training=True),
        "batch statistics",
    ),
    "gelu": (torch.nn.GELU(), TOKENS, lambda x: F.gelu(x, approximate="tanh"), "gelu form"),
    "relu for silu": (torch.nn.SiLU(), TOKENS, F.relu, "activation"),
    "softmax": (torch.nn.Softmax(-1), TOKENS, lambda x: x.softmax(1), "softmax axis"),
    "unfold": (
        torch.nn.Unfold(3),
        IMAGE,
        lambda x: F.unfold(x, 3).unflatten(1, (4, 3, 3)).permute(0, 2, 3, 1, 4).flatten(1, 3),
        "unfold order",
    ),
    "pooling": (torch.nn.AvgPool2d(3), IMAGE, lambda x: F.max_pool2d(x, 3), "pooling"),
}


@pytest.mark.parametrize("name", LEAVES)
def test_a_wrong_leaf_is_named(name: str) -> None:
    module, x, wrong, switch = LEAVES[name]
    cause = cause_of(module, x, wrong(x))
    assert cause is not None
    assert cause.switch == switch, cause
    assert cause.error_after <= 1e-13 < cause.error_before


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float = 3**-0.5) -> Tensor:
    return ((q @ k.mT) * scale).softmax(-1) @ v


def fused(x: Tensor) -> Tensor:
    return attention(*x.chunk(3, -1), scale=2**-0.5)


def native(x: Tensor) -> Tensor:
    q, k, v = x.chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v)


def pooled(x: Tensor) -> Tensor:
    return torch.cat((x[:, :1] * 2, x[:, 1:]), dim=1)[:, 0]


def merged(x: Tensor) -> Tensor:
    return x.flatten(2)


GLUE = {
    "q, k, v": (fused, lambda x: attention(*(x.chunk(3, -1)[i] for i in (1, 0, 2)), 2**-0.5), TOKENS, "q/k/v order"),
    "scale": (fused, lambda x: attention(*x.chunk(3, -1), 6**-0.5), TOKENS, "attention scale"),
    "any scale": (lambda x: (x * 0.25).softmax(-1), lambda x: (x * 0.37).softmax(-1), TOKENS, "attention scale"),
    "not scaled": (fused, lambda x: attention(*x.chunk(3, -1), 1.0), TOKENS, "attention scale"),
    "native scale": (native, lambda x: attention(*x.chunk(3, -1), 1.0), TOKENS, "attention scale"),
    "causal": (
        native,
        lambda x: F.scaled_dot_product_attention(*x.chunk(3, -1), is_causal=True),
        TOKENS,
        "attention mask",
    ),
    "residual left out": (lambda x: x + torch.tanh(x * 2), lambda x: torch.tanh(x * 2), TOKENS, "residual"),
    "class token last": (
        lambda x: torch.cat((x[:, :1] * 2, x), 1),
        lambda x: torch.cat((x, x[:, :1] * 2), 1),
        TOKENS,
        "concat order",
    ),
    "last token": (lambda x: x[:, 0], lambda x: x[:, -1], TOKENS, "token taken"),
    "mean of tokens": (lambda x: x[:, 0], lambda x: x.mean(1), TOKENS, "pooling"),
    "sum for mean": (lambda x: x.mean(1), lambda x: x.sum(1), TOKENS, "pooling"),
    "columns first": (merged, lambda x: x.mT.flatten(2), IMAGE, "axis order"),
    "eps of a sum": (lambda x: x / (x.abs() + 1e-8), lambda x: x / (x.abs() + 1e-6), TOKENS, "epsilon"),
    "multiplied": (torch.tanh, lambda x: 2.5 * torch.tanh(x), TOKENS, "scale"),
    "dropped": (torch.tanh, lambda x: F.dropout(torch.tanh(x), 0.3), TOKENS, "dropout on"),
    "rolled": (torch.exp, lambda x: torch.exp(x).roll(1, 1), TOKENS, "shifted by one"),
}


@pytest.mark.parametrize("name", GLUE)
def test_wrong_glue_is_named(name: str) -> None:
    right, wrong, x, switch = GLUE[name]
    torch.manual_seed(0)
    cause = cause_of(Function(right), x, wrong(x))
    assert cause is not None
    assert cause.switch == switch, cause
    assert cause.error_after <= 1e-13


def test_a_mistake_outside_of_the_catalogue_gets_no_name() -> None:
    noise = draw(2, 5, 6, seed=3)
    assert cause_of(LINEAR, TOKENS, LINEAR(TOKENS) + 0.01 * noise) is None
    assert cause_of(Function(torch.tanh), TOKENS, torch.tanh(TOKENS) * (1 + 1e-6 * noise.exp())) is None


def test_one_wrong_number_is_not_taken_for_float32_arithmetic() -> None:
    wrong = LINEAR(TOKENS).detach().clone()
    wrong[0, 0, 0] *= 1 + 2**-20
    assert cause_of(LINEAR, TOKENS, wrong) is None


def test_arithmetic_in_float32_is_told_by_the_size_of_its_error() -> None:
    x = draw(2, 40, 6)
    wrong = attention(*x.float().chunk(3, -1), scale=2**-0.5).double() * x.chunk(3, -1)[2].cos()
    cause = cause_of(Function(lambda x: fused(x) * x.chunk(3, -1)[2].cos()), x, wrong)
    assert cause is not None
    assert cause.switch == "float32 leak"


def test_a_variance_by_squares_is_told_where_it_loses_digits() -> None:
    norm = double(torch.nn.LayerNorm(64))
    # 20 digits after the point: the sums are exact, only the squares are rounded.
    x = 1000 + (draw(4, 64) * 2**20).round() / 2**20
    with jax.enable_x64(True):
        twin = nnx.LayerNorm(64, epsilon=1e-5, use_fast_variance=True, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        twin.scale.set_value(jnp.asarray(norm.weight.detach().numpy()))
        twin.bias.set_value(jnp.asarray(norm.bias.detach().numpy()))
        wrong = torch.from_numpy(np.array(twin(jnp.asarray(x.numpy()))))
    cause = cause_of(norm, x, wrong)
    assert cause is not None
    assert cause.switch == "fast variance"


def test_jax_s_own_bicubic_is_named() -> None:
    x = draw(1, 3, 8, 8)
    module = Function(lambda x: F.interpolate(x, size=(5, 5), mode="bicubic", align_corners=False))
    for antialias, text in ((True, "antialias"), (False, "no antialias")):
        with jax.enable_x64(True):
            wrong = np.array(jax.image.resize(jnp.asarray(x.numpy()), (1, 3, 5, 5), "cubic", antialias=antialias))
        cause = cause_of(module, x, torch.from_numpy(wrong))
        assert cause is not None
        assert cause.switch == "resize"
        assert f"a = -0.5, {text}" in cause.description


def test_a_line_that_runs_twice_is_altered_both_times() -> None:
    def repeated(x: Tensor, eps: float = 1e-8) -> Tensor:
        for _ in range(3):
            x = x / (x.norm() + eps)
        return x

    cause = cause_of(Function(repeated), TOKENS, repeated(TOKENS, 1e-3))
    assert cause is not None
    assert cause.switch == "epsilon"
    assert cause.error_after <= 1e-13


def test_layouts_are_aligned() -> None:
    axes = (0, 2, 3, 1)
    wrong = F.conv2d(IMAGE, CONV.weight.flip(2, 3), CONV.bias, 2, 1).permute(axes).detach().numpy()
    calls = {ROOT: Call([IMAGE.permute(axes).numpy()], [wrong])}
    rows = [Row("", "output", "forced", "float64", 1.0, 1e-13)]
    (cause,) = name_causes(CONV, (IMAGE,), [pair(CONV, axes=axes)], calls, rows)
    assert cause.switch == "kernel flipped"


# ---- modules with modules inside ----


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = torch.nn.LayerNorm(6), torch.nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(self.norm(x))


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def outer() -> tuple[torch.nn.Module, list[Pair]]:
    model = double(Outer())
    names = [f"blocks.{i}{leaf}" for i in (0, 1) for leaf in (".norm", ".fc", "")] + [""]
    return model, [pair(model.get_submodule(name), (name, 0)) for name in names]


def test_what_a_module_passes_on_is_its_own_mistake() -> None:
    model, pairs = outer()
    block = model.blocks[1]
    x = model.blocks[0](TOKENS)
    # JAX gives fc the input of the block in place of what the norm made of it.
    calls = {("blocks.1.fc", 0): Call([x.detach().numpy()], [block.fc(block.norm(x)).detach().numpy()])}
    rows = [Row("blocks.1.fc", "calls", "forced", "float64", 1.0, 1e-13)]
    (cause,) = name_causes(model, (TOKENS,), pairs, calls, rows)
    assert (cause.module, cause.switch) == ("blocks.1", "wrong tensor")


def test_inner_modules_are_held_fixed_and_left_as_they_were() -> None:
    model, pairs = outer()
    recording = record(model, (TOKENS,), ("blocks.0", 0), {pair.torch for pair in pairs})
    assert recording is not None
    assert set(recording.inner) == {("blocks.0.norm", 0), ("blocks.0.fc", 0)}
    zero = torch.zeros_like(TOKENS)
    sites, steps = recording.run(inner={("blocks.0.fc", 0): zero})
    assert torch.equal(sites[None][0], TOKENS)
    assert [step.name for step in steps] == ["add"]
    assert all("forward" not in vars(module) for module in model.modules())


class InPlace(torch.nn.Module):
    """Changes what it was given, and what its inner module got and returned."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x *= 2
        y = self.fc(x)
        x += 1
        y += x
        return y.tanh_()


def test_work_in_place_spoils_no_replay() -> None:
    model = double(InPlace())
    key = ("fc", 0)
    recording = record(model, (TOKENS.clone(),), ROOT, {ROOT, key})
    assert recording is not None
    wanted = model(TOKENS.clone())
    for _ in range(3):
        sites, _ = recording.run()
        assert rel_f(sites[None][0], wanted) < 1e-15
        assert torch.equal(sites[key][0], 2 * TOKENS)
    assert recording.in_place
    calls = {ROOT: Call([TOKENS.numpy()], [torch.tanh(model.fc(2 * TOKENS) + 2 * TOKENS).detach().numpy()])}
    rows = [Row("", "output", "forced", "float64", 1.0, 1e-13)]
    (cause,) = name_causes(model, (TOKENS.clone(),), [pair(model.fc, key), pair(model)], calls, rows)
    assert cause.error_after <= 1e-13


def test_the_enclosing_call_is_the_innermost_that_was_called() -> None:
    _, pairs = outer()
    by_name = {pair.name: pair for pair in pairs}
    around = {name: enclosing(pairs, by_name[name]) for name in by_name}
    assert around["blocks.1.fc"] is by_name["blocks.1"]
    assert around["blocks.1"] is by_name[""]  # not `blocks`, which is a list and never called
    assert around[""] is None


def test_rows_that_pass_have_no_cause() -> None:
    model, pairs = outer()
    rows = [Row("blocks.1", "layer", "forced", "float64", 0.0, 1e-13)]
    assert name_causes(model, (TOKENS,), pairs, {}, rows) == ()


# ---- resizing, from its definition ----


@pytest.mark.parametrize("size", [(5, 12), (12, 7), (8, 8)])
def test_resize_is_torch_s(size: tuple[int, int]) -> None:
    x = draw(2, 3, 8, 9)
    plain = F.interpolate(x, size=size, mode="bicubic", align_corners=False)
    assert rel_f(resize(x, size, -0.75, antialias=False, edge="clamp"), plain) < 1e-14
    smooth = F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True)
    assert rel_f(resize(x, size, -0.5, antialias=True, edge="renormalise"), smooth) < 1e-14
