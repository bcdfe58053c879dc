"""Every layout in which the weights travel: the golden logits come out of each, in both frameworks."""

from __future__ import annotations

import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import t2t_jax
import t2t_torch
from t2t_config.weights.layouts import LAYOUTS, Unwrapped, to_official, unwrap
from t2t_jax.checkpoint import load_weights
from t2t_jax.state import model_arrays
from t2t_jax.weights.torch_file import from_torch
from tests.support import foreign
from tests.support.golden import Golden, golden, golden_input, golden_weights, rel_f
from tests.support.jax_models import apply

GATE = 1e-12


def golden_state(reference: Golden) -> dict[str, torch.Tensor]:
    """The formula's weights, with the model's own position table."""
    variant, sizes = reference.meta["variant"], sizes_of(reference)
    table = t2t_torch.create_model(variant, **sizes).pos_embed.detach().double()
    weights = golden_weights(variant, reference.keys_and_shapes)
    return {key: torch.from_numpy(weights[key]) if key in weights else table for key, _ in reference.keys_and_shapes}


def sizes_of(reference: Golden) -> dict[str, int]:
    return {key: reference.meta[key] for key in ("img_size", "num_classes")}


def torch_logits(reference: Golden, path: Path, **arguments: object) -> tuple[np.ndarray, t2t_torch.LoadReport]:
    model = t2t_torch.create_model(reference.meta["variant"], **sizes_of(reference), **arguments).double().eval()
    report = t2t_torch.load_checkpoint(model, path)
    with torch.no_grad():
        return model(torch.from_numpy(golden_input(reference.meta))).numpy(), report


@pytest.fixture(scope="module")
def small() -> Golden:
    return golden("t2t_vit_7_img64")


@pytest.mark.parametrize("kind", foreign.FILES)
def test_golden_logits(tmp_path: Path, small: Golden, kind: str):
    name, content, save, entry, layout = foreign.FILES[kind]
    state = golden_state(small)
    save(content(state), tmp_path / name)
    logits, report = torch_logits(small, tmp_path / name)
    assert rel_f(logits, small.arrays["logits"]) <= GATE
    assert (report.entry, report.layout, report.missing, report.resized) == (entry, layout, (), {})
    assert f"{layout} layout" in str(report)
    assert report.left_out == (("aux_head.weight", "aux_head.bias") if kind == "token labeling" else ())

    with jax.enable_x64(True):
        model = t2t_jax.create_model(small.meta["variant"], **sizes_of(small), param_dtype=jnp.float64)
        report = load_weights(model, tmp_path / name)
        # Bit for bit what the formula gives, so one run of the model stands for all files.
        expected = from_torch({key: value.numpy() for key, value in state.items()})
        assert model_arrays(model).keys() == expected.keys()
        for key, array in model_arrays(model).items():
            np.testing.assert_array_equal(array, expected[key])
        assert (report.entry, report.layout, report.missing, report.resized) == (entry, layout, (), {})
        if kind in ("release", "PaddleViT"):
            logits = apply(model, jnp.asarray(golden_input(small.meta).transpose(0, 2, 3, 1)))
            assert rel_f(logits, small.arrays["logits"]) <= GATE


def test_golden_logits_of_mmpretrain(tmp_path: Path):
    """It has token transformers only."""
    reference = golden("t2t_vit_t_14")
    state = golden_state(reference)
    torch.save(foreign.mmpretrain(state), tmp_path / "t2t-vit-t-14_8xb64_in1k.pth")
    logits, report = torch_logits(reference, tmp_path / "t2t-vit-t-14_8xb64_in1k.pth")
    assert rel_f(logits, reference.arrays["logits"]) <= GATE
    assert (report.entry, report.layout) == ("state_dict", "mmpretrain")
    assert (report.missing, report.left_out, report.resized) == ((), (), {})
    # JAX gets bit for bit what it gets from an official file, on which its golden logits are tested.
    with jax.enable_x64(True):
        model = t2t_jax.create_model("t2t_vit_t_14", **sizes_of(reference), param_dtype=jnp.float64)
        assert load_weights(model, tmp_path / "t2t-vit-t-14_8xb64_in1k.pth").layout == "mmpretrain"
        expected = from_torch({key: value.numpy() for key, value in state.items()})
        for key, array in model_arrays(model).items():
            np.testing.assert_array_equal(array, expected[key])


def test_both_outputs_of_token_labeling(tmp_path: Path, small: Golden):
    """The class token's logits, and with them half the maximum over the tokens' (tlt/models/lvvit.py, forward)."""
    content = foreign.token_labeling(golden_state(small))
    torch.save(content, tmp_path / "aux.pth")
    plain = t2t_torch.create_model("t2t_vit_7", **sizes_of(small)).double().eval()
    t2t_torch.load_checkpoint(plain, tmp_path / "aux.pth")
    with torch.no_grad():
        tokens = plain.forward_features(torch.from_numpy(golden_input(small.meta)))[:, 1:]
    weight, bias = (content["state_dict_ema"][f"aux_head.{leaf}"] for leaf in ("weight", "bias"))
    expected = small.arrays["logits"] + 0.5 * (tokens @ weight.T + bias).numpy().max(axis=1)

    logits, report = torch_logits(small, tmp_path / "aux.pth", aux_head=True)
    assert rel_f(logits, expected) <= GATE
    assert report.left_out == ()
    with jax.enable_x64(True):
        model = t2t_jax.create_model("t2t_vit_7", **sizes_of(small), param_dtype=jnp.float64, aux_head=True)
        assert load_weights(model, tmp_path / "aux.pth").left_out == ()
        logits = apply(model, jnp.asarray(golden_input(small.meta).transpose(0, 2, 3, 1)))
    assert rel_f(logits, expected) <= GATE


MMPRETRAIN = [
    "backbone.cls_token",
    "backbone.pos_embed",
    "backbone.tokens_to_token.attention1.ln1.weight",
    "backbone.tokens_to_token.attention1.attn.qkv.weight",
    "backbone.tokens_to_token.attention1.attn.proj.bias",
    "backbone.tokens_to_token.attention1.ln2.bias",
    "backbone.tokens_to_token.attention1.ffn.layers.0.0.weight",
    "backbone.tokens_to_token.attention1.ffn.layers.1.bias",
    "backbone.tokens_to_token.project.weight",
    "backbone.encoder.0.ln1.weight",
    "backbone.encoder.0.attn.qkv.weight",
    "backbone.encoder.0.attn.proj.weight",
    "backbone.encoder.0.ln2.bias",
    "backbone.encoder.0.ffn.layers.0.0.bias",
    "backbone.encoder.0.ffn.layers.1.weight",
    "backbone.norm.weight",
    "head.layers.head.weight",
    "head.layers.head.bias",
]
"""As mmpretrain's modules spell them (T2T_ViT, T2TTransformerLayer, FFN, VisionTransformerClsHead)."""


def test_mmpretrains_own_spelling():
    official, layout = to_official({name: np.zeros(1) for name in MMPRETRAIN})
    own = t2t_torch.create_model("t2t_vit_micro", tokens_type="transformer", img_size=32).state_dict()
    assert layout.name == "mmpretrain"
    assert len(official) == len(MMPRETRAIN)
    assert not official.keys() - own.keys()


def test_a_backbone_alone_is_recognised_too():
    names = {name.removeprefix("backbone.") for name in MMPRETRAIN if name.startswith("backbone.")}
    official, layout = to_official({name: np.zeros(1) for name in names})
    assert layout.name == "mmpretrain"
    assert {"blocks.0.mlp.fc1.bias", "tokens_to_token.attention1.norm1.weight"} <= official.keys()


@pytest.mark.parametrize("name", t2t_torch.list_models())
def test_our_own_models_are_official(name: str):
    with torch.device("meta"):
        own = t2t_torch.create_model(name).state_dict()
    official, layout = to_official(own)
    assert layout.name == "official"
    assert official == own


def test_square_matrices_of_paddle_are_transposed_and_features_are_not():
    square = np.arange(4.0).reshape(2, 2)
    names = ("patch_embed.attn1.w", "patch_embed.attn1.kqv.weight", "blocks.0.attn.proj.weight")
    official, _ = to_official(dict.fromkeys(names, square))
    np.testing.assert_array_equal(official["tokens_to_token.attention1.w"], square)
    np.testing.assert_array_equal(official["tokens_to_token.attention1.kqv.weight"], square.T)
    np.testing.assert_array_equal(official["blocks.0.attn.proj.weight"], square.T)


def test_two_names_that_become_one_are_an_error():
    names = ("patch_embed.attention1.w", "tokens_to_token.attention1.w")
    with pytest.raises(ValueError, match=r"two tensors are called tokens_to_token\.attention1\.w in timm pull request"):
        to_official(dict.fromkeys(names, np.zeros(1)))


def test_every_mark_is_its_own():
    marks = {
        "mmpretrain": "backbone.encoder.11.ln1.weight",
        "timm pull request": "patch_embed.attention1.w",
        "PaddleViT": "patch_embed.attn1.w",
        "token labeling": "aux_head.bias",
    }
    assert {layout.name for layout in LAYOUTS} == marks.keys()
    for layout in LAYOUTS:
        assert [name for name, key in marks.items() if re.search(layout.mark, key)] == [layout.name]


def test_a_name_of_nothing_but_prefixes_is_not_walked_through():
    name = "module." * 200_000 + "head.weight"
    start = time.process_time()
    ((found,), _) = to_official({name: np.zeros((1, 1))})
    assert time.process_time() - start < 5
    assert found == name.removeprefix("module." * 4)


# ---- what tools add ----


def averaged(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return torch.optim.swa_utils.AveragedModel(model).state_dict()


def lightning(model: torch.nn.Module, attribute: str) -> dict[str, torch.Tensor]:
    return {f"{attribute}.{name}": value for name, value in model.state_dict().items()}


def counted(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """thop registers two buffers in the model and in each part that it counts."""
    counters = ("total_ops", "total_params", "norm.total_ops", "blocks.0.attn.qkv.total_params")
    return model.state_dict() | {name: torch.zeros(1, dtype=torch.float64) for name in counters}


TOOLS = {
    "AveragedModel": (averaged, "module.", 1),
    "Lightning, model": (lambda model: lightning(model, "model"), "model.", 0),
    "Lightning, net": (lambda model: lightning(model, "net"), "net.", 0),
    "compiled in Lightning": (lambda model: lightning(model, "model._orig_mod"), "model._orig_mod.", 0),
    "averaged in Lightning": (lambda model: {f"net.{k}": v for k, v in averaged(model).items()}, "net.module.", 1),
    "thop": (counted, "", 4),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("tool", TOOLS)
def test_what_tools_add_is_taken_off_and_told(tmp_path: Path, tool: str, suffix: str):
    content, prefix, counters = TOOLS[tool]
    source = t2t_torch.create_model("t2t_vit_micro", img_size=16, in_chans=1, num_classes=3)
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": content(source), "hyper_parameters": {"lr": 1e-3}}, path)
    else:
        t2t_torch.save_checkpoint(content(source), path)
    model = t2t_torch.create_model("t2t_vit_micro", img_size=16, in_chans=1, num_classes=3)
    twin = t2t_jax.create_model("t2t_vit_micro", img_size=16, in_chans=1, num_classes=3)
    report = t2t_torch.load_checkpoint(model, path)
    for told in (report, load_weights(twin, path)):
        assert (told.prefix, len(told.ignored), told.left_out, told.is_notable) == (prefix, counters, (), True)
        assert repr(prefix) in str(told) or not prefix
        assert "not weights: " in str(told) or not counters
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    expected = from_torch({name: value.numpy() for name, value in source.state_dict().items()})
    for name, array in model_arrays(twin).items():
        np.testing.assert_array_equal(array, expected[name])


def test_only_single_numbers_are_counters():
    found = unwrap({"head.total_ops": np.zeros((2, 2)), "n_averaged": np.zeros(()), "x.weight": np.zeros(3)})
    assert found == Unwrapped(
        {"head.total_ops": found.weights["head.total_ops"], "x.weight": found.weights["x.weight"]}, "", ("n_averaged",)
    )


def test_a_prefix_that_not_every_name_carries_stays():
    weights = {"model.head.weight": np.zeros(3), "criterion.weight": np.zeros(3)}
    assert unwrap(weights).weights.keys() == weights.keys()
    assert unwrap({"n_averaged": np.zeros(())}) == Unwrapped({}, "", ("n_averaged",))
