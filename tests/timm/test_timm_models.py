"""Our models through timm's own `create_model`. Run by `make test-timm`, in an environment of its own: timm needs
torchvision.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import get_pretrained_cfg, is_model_pretrained
from timm.optim import param_groups_layer_decay
from torch import nn

import t2t_torch
import t2t_torch.timm_models
from t2t_common.weights.layer_decay import layer_scale
from t2t_config import MODELS, PRETRAINED, find_pretrained
from tests.support.server import Server, serve

MICRO = "t2t_vit_micro"
SMALL = {"img_size": 32, "num_classes": 3}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as server:
        yield server


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    pairs = zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_every_model_and_tag_is_registered_and_none_of_timms_is_replaced():
    ours = set(timm.list_models(module="timm_models"))
    assert ours == {name for name in MODELS if name.startswith("t2t_")}
    assert timm.create_model("deit_tiny_patch16_224").__class__.__module__.startswith("timm.")
    for name in ours:
        assert is_model_pretrained(name) == (name in PRETRAINED)
        for tag, published in PRETRAINED.get(name, {}).items():
            assert get_pretrained_cfg(f"{name}.{tag}").url == published.url
        if name in PRETRAINED:
            assert get_pretrained_cfg(name).url == find_pretrained(name).url


def test_a_model_is_ours_and_computes_the_same():
    model = timm.create_model(MICRO, img_size=(32, 48), in_chans=1, num_classes=3, drop_path_rate=0.1, qk_scale=0.3)
    assert isinstance(model, t2t_torch.models.t2t_vit.T2TViT)
    ours = t2t_torch.create_model(MICRO, img_size=(32, 48), in_chans=1, num_classes=3, qk_scale=0.3)
    ours.load_state_dict(model.state_dict())
    images = torch.randn(2, 1, 32, 48)
    assert torch.equal(model.eval()(images), ours.eval()(images))


def test_the_configuration_is_timms():
    model = timm.create_model("t2t_vit_14.in1k_384")
    assert model.pretrained_cfg["architecture"] == "t2t_vit_14"
    assert model.pretrained_cfg["tag"] == "in1k_384"
    assert model.img_size == (384, 384)
    data = resolve_model_data_config(model)
    assert (data["input_size"], data["crop_pct"], data["interpolation"]) == ((3, 384, 384), 0.9, "bicubic")
    assert timm.create_model("t2t_vit_14.cifar10").num_classes == 10
    changed = timm.create_model(MICRO, pretrained_cfg_overlay={"num_classes": 7, "mean": (0.5, 0.5, 0.5)})
    assert changed.num_classes == 7
    assert changed.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_14_wide"])
def test_pretrained_does_not_change_the_attention_scale(name: str, tmp_path: Path):
    """Upstream's does, to embed_dim^-0.5, which its own weights were not trained with."""
    small = {"img_size": 32, "num_classes": 3}
    plain = timm.create_model(name, **small)
    torch.save({"state_dict_ema": plain.state_dict()}, tmp_path / "a.pth.tar")
    source = {"file": str(tmp_path / "a.pth.tar"), "num_classes": 3, "input_size": (3, 32, 32)}
    loaded = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **small)
    assert same(plain, loaded)
    heads = MODELS[name].sizes["num_heads"]
    assert {block.attn.scale for block in loaded.blocks} == {(loaded.embed_dim // heads) ** -0.5}


def test_a_release_file_comes_from_its_address(server: Server, tmp_path: Path):
    """As `{'state_dict_ema': ...}` under the names that DataParallel gives, into another size and other classes."""
    released = t2t_torch.create_model(MICRO, img_size=32, num_classes=5)
    content = {"state_dict_ema": {f"module.{key}": value for key, value in released.state_dict().items()}}
    torch.save(content, tmp_path / "a.pth.tar")
    server.files["/a.pth.tar"] = (tmp_path / "a.pth.tar").read_bytes()
    overlay = {"url": f"{server.address}/a.pth.tar", "num_classes": 5, "input_size": (3, 32, 32)}

    def create(**arguments: object) -> nn.Module:
        return timm.create_model(
            MICRO, pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=tmp_path / "cache", **arguments
        )

    assert same(create(), released)
    other = create(img_size=64, num_classes=2, in_chans=1)
    t2t_torch.save_checkpoint(released, tmp_path / "b.pth")
    expected = t2t_torch.create_model(MICRO, img_size=64, num_classes=2, in_chans=1)
    t2t_torch.load_checkpoint(expected, tmp_path / "b.pth")
    for key, value in expected.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]) or key.startswith("head."), key
    assert len(server.requests) == 1


def test_weights_of_another_model_are_refused(tmp_path: Path):
    t2t_torch.save_checkpoint(t2t_torch.create_model("t2t_vit_tiny", **SMALL), tmp_path / "tiny.pth")
    with pytest.raises(ValueError, match=r"unexpected|of another shape"):
        timm.create_model(MICRO, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "tiny.pth")})


def test_models_without_published_weights_say_so():
    with pytest.raises(RuntimeError, match="No pretrained weights exist for t2t_vit_14_se"):
        timm.create_model("t2t_vit_14_se", pretrained=True)


def test_timm_reads_our_hub_folders(tmp_path: Path):
    model = t2t_torch.create_model(MICRO, img_size=(32, 48), in_chans=1, num_classes=3, qk_scale=0.3)
    t2t_torch.save_pretrained(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert same(model, loaded)
    assert loaded.spec == model.spec
    assert loaded.pretrained_cfg["mean"] == pytest.approx([0.449])
    wider = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=(64, 96), num_classes=0)
    assert wider(torch.randn(1, 1, 64, 96)).shape == (1, 64)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"features_only": True}, "takes no features_only: .*forward_features"),
        ({"global_pool": "avg"}, "takes no global_pool: the head reads the class token"),
        ({"no_such_argument": 1}, "unexpected keyword argument 'no_such_argument'"),
    ],
)
def test_what_does_not_work_is_refused_clearly(arguments: dict[str, object], says: str):
    with pytest.raises(ValueError, match=says):
        timm.create_model(MICRO, **arguments)


def test_timms_users_find_their_methods():
    model = timm.create_model(MICRO, **SMALL)
    assert model.get_classifier() is model.head
    model.reset_classifier(7)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    assert model.no_weight_decay() == {"cls_token"}
    assert model.forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 1 + 4, 64)


def test_layer_decay_is_timms():
    model = timm.create_model("deit_tiny_distilled_patch16_224")
    theirs = {
        id(p): group["lr_scale"] for group in param_groups_layer_decay(model, layer_decay=0.7) for p in group["params"]
    }
    assert len(theirs) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert layer_scale(name, len(model.blocks), 0.7) == pytest.approx(theirs[id(parameter)], rel=1e-12), name
