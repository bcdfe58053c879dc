"""Models by name: the same list as PyTorch's, sizes, arguments, errors."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from flax import nnx

import t2t_torch
from t2t_config import ALIASES, MODELS
from t2t_jax import create_model, list_models
from tests.jax.helpers import abstract, variables


def test_the_list_is_pytorchs():
    assert list_models() == t2t_torch.list_models()


@pytest.mark.parametrize("name", [name for name in list_models() if name not in ALIASES])
def test_every_listed_model_can_be_made(name: str):
    model = abstract(lambda: create_model(name))
    config = MODELS[name]
    assert type(model).__name__ == config.arch
    assert model.img_size == (config.img_size, config.img_size)
    assert model.num_classes == config.num_classes
    assert model.pos_embed.shape[1] == model.num_prefix_tokens + model.grid_size[0] * model.grid_size[1]
    if config.num_params is not None:  # the authors' own count
        assert sum(variable.size for variable in variables(model).values()) == config.num_params


def test_the_counts_of_the_paper_are_known():
    assert sum(config.num_params is not None for config in MODELS.values()) == 14


def test_timm_names_are_aliases():
    assert "deit_small_patch16_224" in list_models()
    ours, theirs = (
        {key: v.shape for key, v in variables(abstract(lambda name=name: create_model(name))).items()}
        for name in ("vit_deit_small_patch16_224", "deit_small_patch16_224")
    )
    assert ours == theirs


@pytest.mark.parametrize(("name", "suggestion"), [("t2t_vit_13", "t2t_vit_14"), ("deit_tiny", "deit_tiny_patch16_224")])
def test_unknown_name_suggests_the_nearest(name: str, suggestion: str):
    with pytest.raises(ValueError, match=suggestion) as error:
        create_model(name)
    assert repr(name) in str(error.value)


def test_unknown_override_is_named():
    with pytest.raises(ValueError, match="qk_scle"):
        create_model("t2t_vit_micro", img_size=32, qk_scle=1.0)


def test_arguments_reach_the_model():
    model = abstract(
        lambda: create_model(
            "t2t_vit_micro",
            img_size=(32, 48),
            in_chans=1,
            num_classes=7,
            drop_rate=0.1,
            attn_drop_rate=0.2,
            drop_path_rate=0.3,
            dtype=jnp.bfloat16,
            param_dtype=jnp.float16,
            qk_scale=0.5,
        )
    )
    block = model.blocks[-1]
    assert (model.img_size, model.in_chans, model.num_classes) == ((32, 48), 1, 7)
    assert (model.pos_drop.rate, block.attn.proj_drop.rate, block.mlp.drop.rate) == (0.1, 0.1, 0.1)
    assert block.attn.attn_drop.rate == 0.2
    assert [b.drop_path.rate for b in model.blocks] == pytest.approx([0.0, 0.3])
    assert block.attn.scale == 0.5
    assert {str(v.dtype) for v in variables(model).values()} == {"float16"}
    assert {layer.dtype for _, layer in nnx.iter_modules(model) if hasattr(layer, "dtype")} == {jnp.bfloat16}


def test_overrides_win_over_the_table():
    assert len(abstract(lambda: create_model("t2t_vit_14", depth=3)).blocks) == 3


def test_in21k_head_layer_goes_with_other_classes():
    name = "vit_base_patch16_224_in21k"
    assert "pre_logits.fc.kernel" in variables(abstract(lambda: create_model(name)))
    assert "pre_logits.fc.kernel" not in variables(abstract(lambda: create_model(name, num_classes=10)))
