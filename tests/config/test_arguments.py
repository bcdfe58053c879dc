"""Arguments of models: each mistake by its value and its remedy, and nothing that can be refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from t2t_config import MODELS, model_arguments
from t2t_config.arguments import check_arguments

DENSE = dict(MODELS["t2t_vit_dense"].sizes)
COUNTS = ("in_chans", "embed_dim", "depth", "num_heads", "token_dim", "patch_size", "growth_rate")
RATES = ("drop_rate", "attn_drop_rate", "drop_path_rate", "performer_drop_rate")
FLAGS = ("qkv_bias", "distilled", "aux_head")
VIT = dict(MODELS["vit_deit_tiny_patch16_224"].sizes)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_table_passes(name: str):
    arch, arguments = model_arguments(name, img_size=None, num_classes=None, overrides={})
    check_arguments(arch, arguments)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "3", 2**31, float("nan")])
def test_counts(name: str, value: Any):
    with pytest.raises(ValueError, match=rf"^{name} .* is not a whole number from 1$") as error:
        check_arguments("VisionTransformer", {**VIT, name: value})
    assert repr(value) in str(error.value)
    check_arguments("VisionTransformer", {**VIT, name: np.int64(3)})


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan"), "0.1", None, False])
def test_rates(name: str, value: Any):
    with pytest.raises(ValueError, match=rf"^{name} .* is not a probability: give a number from 0 to 1$"):
        check_arguments("VisionTransformer", {**VIT, name: value})
    check_arguments("VisionTransformer", {**VIT, name: np.float32(1)})


@pytest.mark.parametrize("name", FLAGS)
def test_flags(name: str):
    with pytest.raises(ValueError, match=rf"^{name} 1 is not True or False$"):
        check_arguments("VisionTransformer", {**VIT, name: 1})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"num_classes": -1}, "num_classes -1 is not a number of classes"),
        ({"representation_size": 1.5}, r"representation_size 1\.5 is not"),
        ({"img_size": 0}, "img_size 0 is not a size in pixels: give a whole number from 1, or"),
        ({"img_size": (32,)}, r"img_size \(32,\)"),
        ({"img_size": (32, 3.5)}, r"img_size \(32, 3\.5\)"),
        ({"img_size": "32"}, "img_size '32'"),
        ({"mlp_ratio": 0}, "mlp_ratio 0 is not a positive number"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio inf"),
        ({"mlp_ratio": 1e-3}, "mlp_ratio 0.001 times embed_dim is not a number of channels"),
        ({"mlp_ratio": 1e30}, r"mlp_ratio 1e\+30 times"),
        ({"norm_eps": -1e-6}, "norm_eps -1e-06"),
        ({"qk_scale": 0}, "qk_scale 0 is not a scale"),
        ({"qk_scale": float("nan")}, "qk_scale nan"),
        ({"tokens_type": "performer", "token_dim": 1}, "token_dim 1 is too small for a performer"),
    ],
)
def test_what_cannot_be(arguments: dict[str, Any], complaint: str):
    with pytest.raises(ValueError, match=f"^{complaint}"):
        check_arguments("VisionTransformer", {**VIT, **arguments})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"block_config": ()}, r"block_config \(\) is not a list of stages"),
        ({"block_config": 3}, "block_config 3"),
        ({"block_config": (1, 0)}, r"block_config \(1, 0\)"),
        ({"block_config": (1, 1, 1), "depth": 2}, "block_config has 3 stages, more than depth 2"),
        ({"embed_dim": 2, "growth_rate": 1, "block_config": (1, 1), "mlp_ratio": 0.6}, "mlp_ratio 0.6 times"),
    ],
)
def test_what_cannot_be_dense(arguments: dict[str, Any], complaint: str):
    with pytest.raises(ValueError, match=f"^{complaint}"):
        check_arguments("T2TViTDense", {**DENSE, **arguments})


def test_what_cannot_be_squeezed():
    sizes = dict(MODELS["t2t_vit_14_se"].sizes)
    check_arguments("T2TViTSE", {**sizes, "embed_dim": 16})
    with pytest.raises(ValueError, match=r"^embed_dim 15 is too small to be squeezed"):
        check_arguments("T2TViTSE", {**sizes, "embed_dim": 15})


def test_edges_that_can_be():
    edges = {"img_size": [1, 1], "num_classes": 0, "representation_size": None, "qk_scale": -0.5, "drop_rate": 1}
    check_arguments("VisionTransformer", {**VIT, **edges})
