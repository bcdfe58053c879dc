"""Models by name: sizes, names, defaults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import t2t_torch
from t2t_config import ALIASES, MODELS, Pretrained
from t2t_torch import create_model, list_models
from tests.support.server import serve

# Counted on the authors' code, frozen tensors included (paper, tables 1-3, in millions).
T2T_PARAMETERS = {
    "t2t_vit_7": 4_310_222,
    "t2t_vit_10": 5_889_230,
    "t2t_vit_12": 6_941_902,
    "t2t_vit_14": 21_545_550,
    "t2t_vit_19": 39_177_422,
    "t2t_vit_24": 64_105_934,
    "t2t_vit_t_14": 21_541_070,
    "t2t_vit_t_19": 39_172_942,
    "t2t_vit_t_24": 64_101_454,
    "t2t_vit_14_resnext": 21_545_550,
    "t2t_vit_14_wide": 25_156_302,
    "t2t_vit_14_se": 21_803_598,
    "t2t_vit_dense": 23_647_062,
    "t2t_vit_16_ghost": 16_253_262,
}
# Counted on the authors' vit.py; timm's counts where it has the same model.
VIT_PARAMETERS = {
    "vit_small_patch16_224": 48_754_408,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch32_224": 88_224_232,
    "vit_base_patch16_384": 86_859_496,
    "vit_large_patch16_224": 304_326_632,
    "vit_deit_tiny_patch16_224": 5_717_416,
    "vit_deit_small_patch16_224": 22_050_664,
    "vit_deit_tiny_distilled_patch16_224": 5_910_800,
    "vit_deit_base_distilled_patch16_384": 87_630_032,
}


def on_meta(name: str, **arguments: object) -> nn.Module:
    """The model without memory for its tensors: shapes only."""
    with torch.device("meta"):
        return create_model(name, **arguments)


@pytest.mark.parametrize(("name", "count"), (T2T_PARAMETERS | VIT_PARAMETERS).items())
def test_parameter_count(name: str, count: int):
    assert sum(p.numel() for p in on_meta(name).parameters()) == count


def test_all_official_t2t_names_are_known():
    assert list(T2T_PARAMETERS) == [name for name, c in MODELS.items() if name.startswith("t2t_") and c.in_paper]
    assert {name: MODELS[name].num_params for name in T2T_PARAMETERS} == T2T_PARAMETERS


@pytest.mark.parametrize("name", list_models())
def test_every_listed_model_can_be_made(name: str):
    model = on_meta(name)
    config = MODELS[ALIASES.get(name, name)]
    assert type(model).__name__ == config.arch
    assert model.img_size == (config.img_size, config.img_size)
    assert model.num_classes == config.num_classes
    assert model.pos_embed.shape[1] == model.num_prefix_tokens + model.grid_size[0] * model.grid_size[1]


def test_timm_names_are_aliases():
    assert "deit_small_patch16_224" in list_models()
    ours, theirs = (on_meta(name).state_dict() for name in ("vit_deit_small_patch16_224", "deit_small_patch16_224"))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("t2t_vit_13", "t2t_vit_14"),
        ("T2t_vit_14_se", "t2t_vit_14_se"),
        ("deit_tiny", "deit_tiny_patch16_224"),
    ],
)
def test_unknown_name_suggests_the_nearest(name: str, suggestion: str):
    with pytest.raises(ValueError, match=suggestion) as error:
        create_model(name)
    assert repr(name) in str(error.value)


def test_unknown_override_is_named():
    with pytest.raises(ValueError, match="qk_scle"):
        create_model("t2t_vit_micro", img_size=32, qk_scle=1.0)


def test_arguments_reach_the_model():
    model = create_model(
        "t2t_vit_micro",
        img_size=(32, 48),
        in_chans=1,
        num_classes=7,
        drop_rate=0.1,
        attn_drop_rate=0.2,
        drop_path_rate=0.3,
        qk_scale=0.5,
    )
    block = model.blocks[-1]
    assert (model.img_size, model.in_chans, model.num_classes) == ((32, 48), 1, 7)
    assert (model.pos_drop.p, block.attn.proj_drop.p, block.mlp.drop.p) == (0.1, 0.1, 0.1)
    assert block.attn.attn_drop.p == 0.2
    assert [b.drop_path.rate for b in model.blocks] == pytest.approx([0.0, 0.3])
    assert block.attn.scale == 0.5


def test_overrides_win_over_the_table():
    assert len(on_meta("t2t_vit_14", depth=3).blocks) == 3


def test_in21k_head_layer_goes_with_other_classes():
    assert "pre_logits.fc.weight" in on_meta("vit_base_patch16_224_in21k").state_dict()
    assert "pre_logits.fc.weight" not in on_meta("vit_base_patch16_224_in21k", num_classes=10).state_dict()


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


@pytest.mark.parametrize("tag", [True, "in1k"])
def test_pretrained_gives_the_published_weights(release: dict[str, torch.Tensor], tag: bool | str):
    model = create_model("t2t_vit_micro", pretrained=tag)
    assert (model.img_size, model.num_classes) == ((32, 32), 3)
    assert all(torch.equal(value, release[key]) for key, value in model.state_dict().items())
    assert model.blocks[0].attn.scale == 32**-0.5  # never changed by `pretrained`, as it is upstream


def test_pretrained_fits_other_sizes(release: dict[str, torch.Tensor]):
    with pytest.warns(UserWarning, match="resized: pos_embed 2x2 -> 4x4") as told:
        model = create_model("t2t_vit_micro", pretrained=True, img_size=64, num_classes=5)
    assert told[0].filename == __file__
    assert torch.equal(model.blocks[0].attn.qkv.weight, release["blocks.0.attn.qkv.weight"])
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


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
