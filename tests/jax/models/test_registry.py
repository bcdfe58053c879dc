"""Models by name: the same list as PyTorch's, sizes, arguments, errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import t2t_torch
from t2t_config import ALIASES, MODELS, Pretrained
from t2t_jax import create_model, list_models
from t2t_jax.state import model_arrays
from t2t_jax.weights.torch_file import to_torch
from tests.support.jax_models import abstract, variables
from tests.support.profiles import examples
from tests.support.server import serve


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


ODD = (None, True, -1, 0, 1, 2, 3, 16, 48, 0.5, -0.5, 1.5, 1e300, np.nan, np.inf, np.int64(3), 10**400)
ODD = (*ODD, "x", "8", b"1", (), (1,), (2, 3), [8, 8], (1, -1), (1, 2, 3), {})
ARGUMENTS = sorted(
    {name for cls in t2t_torch.models.registry.ARCHITECTURES.values() for name in inspect.signature(cls).parameters}
)
SMALL = {"img_size": 16, "num_classes": 2, "embed_dim": 32, "num_heads": 2}
SMALL_MODELS = {
    "t2t_vit_micro": {"depth": 1},
    "t2t_vit_14_se": {"depth": 1},
    "t2t_vit_dense": {"growth_rate": 8, "block_config": (1, 1)},
    "t2t_vit_16_ghost": {"depth": 1},
    "vit_deit_tiny_distilled_patch16_224": {"depth": 1},
}


def outcome(make: Callable[[], Any]) -> str:
    """What a ValueError says, "made" without one; any other error is a failure of the test."""
    try:
        make()
    except ValueError as error:
        return str(error)
    return "made"


@examples(60)
@given(
    st.sampled_from(sorted(SMALL_MODELS)),
    st.dictionaries(st.sampled_from([*ARGUMENTS, "bogus", "pretrained"]), st.sampled_from(ODD), min_size=1, max_size=3),
)
def test_any_arguments_are_the_same_error_in_both_frameworks(name: str, odd: dict[str, Any]):
    hypothesis.assume(odd.get("pretrained") is not True)  # would ask for a file
    arguments = {**SMALL, **SMALL_MODELS[name], **odd}

    def in_torch() -> None:
        with torch.device("meta"):
            t2t_torch.create_model(name, **arguments)

    ours = outcome(in_torch)
    assert outcome(lambda: abstract(lambda: create_model(name, **arguments))) == ours
    if ours == "made":
        hypothesis.event("made")


@pytest.mark.parametrize("name", [None, 3, ["t2t_vit_14"], ""])
def test_a_name_that_is_no_text(name: Any):
    errors = [outcome(lambda create=create: create(name)) for create in (create_model, t2t_torch.create_model)]
    assert errors[0] == errors[1]
    assert repr(name) in errors[0]


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


# ---- published weights, from a server on loopback in place of theirs ----


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, torch.Tensor]]:
    """A release file of the micro model (32x32, 3 classes) in the authors' form, listed as its default."""
    torch.manual_seed(0)
    weights = t2t_torch.create_model("t2t_vit_micro", img_size=32, num_classes=3).state_dict()
    torch.save({"state_dict_ema": {f"module.{key}": value for key, value in weights.items()}}, tmp_path / "a.pth.tar")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("T2T_CACHE", str(tmp_path / "cache"))
    with serve() as server:
        server.files["/a.pth.tar"] = (tmp_path / "a.pth.tar").read_bytes()
        listed = Pretrained(f"{server.address}/a.pth.tar", img_size=32, num_classes=3)
        monkeypatch.setattr("t2t_config.pretrained.PRETRAINED", {"t2t_vit_micro": {"in1k": listed}})
        yield weights
    assert len(server.requests) <= 1  # once; then the cache


def test_pretrained_gives_the_published_weights(release: dict[str, torch.Tensor]):
    model = create_model("t2t_vit_micro", pretrained=True)
    found = to_torch(model_arrays(model))
    assert found.keys() == release.keys()
    assert all(np.array_equal(value, release[key].numpy()) for key, value in found.items())
    assert model.blocks[0].attn.scale == 32**-0.5  # never changed by `pretrained`, as it is upstream
    with pytest.warns(UserWarning, match="resized: pos_embed 2x2 -> 4x4") as told:
        other = create_model("t2t_vit_micro", pretrained="in1k", img_size=64, num_classes=5)
    assert told[0].filename == __file__
    assert (other.pos_embed.shape, other.head.kernel.shape) == ((1, 17, 64), (64, 5))


def test_a_published_file_without_classifier_is_refused_unless_other_classes_are_asked_for(
    release: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    torch.save({name: value for name, value in release.items() if "head" not in name}, tmp_path / "bare.pth")
    monkeypatch.setattr(Pretrained, "download", lambda self: tmp_path / "bare.pth")
    with pytest.raises(ValueError, match=r"bare\.pth lacks head\."):
        create_model("t2t_vit_micro", pretrained=True)
    with pytest.warns(UserWarning, match=r"kept as they were in the model: head\."):
        create_model("t2t_vit_micro", pretrained=True, num_classes=5)


def test_pretrained_without_published_weights():
    with pytest.raises(ValueError, match="no published weights of t2t_vit_14_se"):
        create_model("t2t_vit_14_se", pretrained=True)
