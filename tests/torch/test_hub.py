"""Models to and from a hub folder and a hub. Twin: tests/jax/test_hub.py."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import t2t_torch
from t2t_config.weights.metadata import from_text
from t2t_torch.checkpoint import resize_pos_embed
from tests.support.fake_hub import ask, fake_hub

NAME = "t2t_vit_micro"
KNOWN = {"recipe": {"lr": 1e-3}, "metrics": {"top1": 98.9}, "parity": {"verdict": "EQUAL"}, "mean": [0.25]}


def make(**changes: object) -> torch.nn.Module:
    return t2t_torch.create_model(NAME, **{"img_size": (32, 48), "in_chans": 1, "num_classes": 3, **changes})


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_a_folder_gives_the_same_model_back(tmp_path: Path):
    model = make(qk_scale=0.3, drop_path_rate=0.1)
    t2t_torch.save_pretrained(model, tmp_path / "new" / "folder", metadata=KNOWN)
    again = t2t_torch.from_pretrained(tmp_path / "new" / "folder")
    assert same(model, again)
    assert not again.training
    assert (again.spec, again.img_size, again.blocks[0].attn.scale) == (model.spec, (32, 48), 0.3)
    images = torch.randn(2, 1, 32, 48)
    assert torch.equal(model.eval()(images), again(images))


def test_the_folder_holds_weights_configuration_and_card(tmp_path: Path):
    t2t_torch.save_pretrained(make(), tmp_path, metadata=KNOWN)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == NAME
    assert config["metadata"]["metrics"] == {"top1": 98.9}
    assert config["pretrained_cfg"]["mean"] == [0.25]
    assert "| top1 | 98.9 |" in (tmp_path / "README.md").read_text()
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        texts = file.metadata()
    assert {key: from_text(texts)[key] for key in KNOWN} == KNOWN
    assert from_text(texts)["model"] == NAME


def test_a_card_that_somebody_wrote_stays(tmp_path: Path):
    (tmp_path / "README.md").write_text("mine")
    t2t_torch.save_pretrained(make(), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_other_sizes_are_fitted(tmp_path: Path):
    """From a grid that is not square, which only config.json and the metadata tell."""
    t2t_torch.save_pretrained(make(), tmp_path)
    with pytest.warns(
        UserWarning, match=r"(?s)resized: pos_embed 2x3 -> 4x4.*left out of the file: head\.bias"
    ) as told:
        other = t2t_torch.from_pretrained(tmp_path, img_size=64, in_chans=3, num_classes=5)
    assert told[0].filename == __file__
    assert other.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    expected = resize_pos_embed(make().pos_embed, (2, 3), (4, 4))
    torch.testing.assert_close(other.pos_embed, expected, rtol=0, atol=1e-6)


def test_a_file_without_classifier(tmp_path: Path):
    """Refused, whatever the size of the images, unless other classes were asked for."""
    t2t_torch.save_pretrained(make(), tmp_path)
    weights = t2t_torch.read_state_dict(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("head.")}
    t2t_torch.save_checkpoint(kept, tmp_path / "model.safetensors", metadata={"img_size": "(32, 48)"})
    for same_classes in ({}, {"num_classes": 3}, {"img_size": 64}):
        with pytest.raises(ValueError, match=r"model\.safetensors lacks head\.weight, head\.bias: "):
            t2t_torch.from_pretrained(tmp_path, **same_classes)
    with pytest.warns(UserWarning, match=r"kept as they were in the model: head\.weight"):
        assert t2t_torch.from_pretrained(tmp_path, num_classes=5).head.out_features == 5
    with pytest.warns(UserWarning, match=r"kept as they were in the model: head\.weight"):
        t2t_torch.from_pretrained(tmp_path, aux_head=True)


def test_an_exact_load_says_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    t2t_torch.save_pretrained(make(aux_head=True), tmp_path)
    t2t_torch.from_pretrained(tmp_path, num_classes=3, img_size=(32, 48), aux_head=True)
    assert not recwarn.list


def test_a_model_of_unknown_name_or_changed_shape_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="create it with create_model"):
        t2t_torch.save_pretrained(
            t2t_torch.models.t2t_vit.T2TViT(img_size=32, embed_dim=64, depth=1, num_heads=2), tmp_path
        )
    model = make()
    model.blocks[1] = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"no t2t_vit_micro any more: blocks\.1\..* missing instead of"):
        t2t_torch.save_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match="the metadata are of t2t_vit_14, the model is t2t_vit_micro"):
        t2t_torch.save_pretrained(make(), tmp_path, metadata={"model": "t2t_vit_14"})
    assert not list(tmp_path.iterdir())
    model = make()
    model.reset_classifier(7)  # which is no change of the model
    t2t_torch.save_pretrained(model, tmp_path)
    assert same(t2t_torch.from_pretrained(tmp_path), model)


def test_a_failed_write_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = make()
    t2t_torch.save_pretrained(model, tmp_path)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("t2t_torch.hub.save_checkpoint", full)
    with pytest.raises(ValueError, match="No space left"):
        t2t_torch.save_pretrained(make(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    assert same(t2t_torch.from_pretrained(tmp_path), model)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"no config\.json in"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"no model\.safetensors in"),
        (lambda folder: (folder / "config.json").write_text("{"), r"cannot read .*config\.json"),
        (lambda folder: (folder / "config.json").write_text('{"architecture": "resnet50"}'), "no.* a model of ours"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"12345678"), "truncated, corrupt"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(tmp_path: Path, damage: object, says: str):
    t2t_torch.save_pretrained(make(), tmp_path)
    damage(tmp_path)  # type: ignore[operator]
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        t2t_torch.from_pretrained(tmp_path)


def test_without_huggingface_hub_folders_still_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    t2t_torch.save_pretrained(make(), tmp_path)
    t2t_torch.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r'needs huggingface_hub: pip install -e "\.\[hub\]"'):
        t2t_torch.from_pretrained("me/micro")


PUSH = """
import torch, t2t_torch
torch.manual_seed(0)
model = t2t_torch.create_model("t2t_vit_micro", img_size=32, num_classes=3)
print(t2t_torch.push_to_hub(model, "me/micro", token="hf_test", private=True, message="first"))
again = t2t_torch.from_pretrained("me/micro")
print(all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items()))
"""
AGAIN = """
import t2t_torch
model = t2t_torch.create_model("t2t_vit_micro", img_size=32, num_classes=3)
t2t_torch.push_to_hub(model, "me/micro", token="hf_test", metadata={"metrics": {"top1": 1.0}})
for attempt in (lambda: t2t_torch.push_to_hub(model, "me/micro", token="wrong"),
                lambda: t2t_torch.from_pretrained("me/none")):
    try:
        attempt()
    except ValueError as error:
        print(error)
"""


UNREACHABLE = """
import t2t_torch
model = t2t_torch.create_model("t2t_vit_micro", img_size=32, num_classes=3)
for attempt in (lambda: t2t_torch.push_to_hub(model, "me/micro", token="hf_test"),
                lambda: t2t_torch.from_pretrained("me/micro")):
    try:
        attempt()
    except ValueError as error:
        print(error)
"""


def test_a_hub_that_cannot_be_reached(tmp_path: Path):
    with fake_hub() as hub:
        pass  # its port is closed now
    pushed, fetched = ask(hub, UNREACHABLE, tmp_path).splitlines()
    assert re.fullmatch(r"cannot push to me/micro \(.*refused.*\): check the connection and HF_ENDPOINT", pushed)
    assert fetched.startswith("me/micro is neither a folder nor a model on the hub (")


def test_to_the_hub_and_back(tmp_path: Path):
    with fake_hub() as hub:
        address, equal = ask(hub, PUSH, tmp_path).splitlines()
        assert address.startswith(f"{hub.address}/me/micro/commit/")
        assert equal == "True"
        assert hub.created["me/micro"]["name"] == "micro"
        assert sorted(hub.repos["me/micro"]) == ["README.md", "config.json", "model.safetensors"]
        assert "t2t_torch.from_pretrained('me/micro')" in hub.repos["me/micro"]["README.md"].decode()

        hub.repos["me/micro"]["README.md"] = b"mine"
        refused, unknown = ask(hub, AGAIN, tmp_path).splitlines()
        assert hub.repos["me/micro"]["README.md"] == b"mine"
        assert json.loads(hub.repos["me/micro"]["config.json"])["metadata"]["metrics"] == {"top1": 1.0}
        assert hub.messages == ["first", "Upload model"]
        assert refused.startswith("cannot push to me/micro (")
        assert "401" in refused
        assert unknown.startswith("me/none is neither a folder nor a model on the hub (")


@pytest.mark.parametrize(
    "arguments",
    [{"pretrained": True}, {"depth": 10**9}, {"embed_dim": 60_000, "depth": 500}, {"num_heads": 0}, {"mlp_ratio": "x"}],
)
def test_a_configuration_that_makes_no_model_of_this_file(tmp_path: Path, arguments: dict[str, object]):
    """It may neither download another one nor fill the memory."""
    t2t_torch.save_pretrained(make(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"] |= arguments
    del config["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json"):
        t2t_torch.from_pretrained(tmp_path)


def test_a_configuration_that_changed_is_refused(tmp_path: Path):
    """Until its digest is taken out, as files of earlier versions have none."""
    t2t_torch.save_pretrained(make(), tmp_path, metadata={"class_names": ["cat", "dog", "owl"]})
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"owl"', '"owm"'))
    with pytest.raises(
        ValueError, match=r"config\.json: it is not as it was saved: get another copy; if you changed it"
    ):
        t2t_torch.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    t2t_torch.from_pretrained(tmp_path)


def test_a_configuration_of_brackets(tmp_path: Path):
    t2t_torch.save_pretrained(make(), tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"cannot read .*config.json"):
        t2t_torch.from_pretrained(tmp_path)
