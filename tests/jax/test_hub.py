"""Models to and from a hub folder and a hub. Twin: tests/torch/test_hub.py."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import t2t_jax
import t2t_torch
from parity import rel_f
from parity.carry.convert import as_dtype
from t2t_config.weights.hub import read_metadata
from t2t_jax.state import model_arrays
from t2t_jax.weights.torch_file import to_torch
from tests.support.fake_hub import ask, fake_hub
from tests.support.full_disk import on_full_disk

SIZES = {"img_size": (32, 48), "in_chans": 1, "num_classes": 3}
NAMES = ["t2t_vit_micro", "vit_deit_tiny_distilled_patch16_224"]


def same(one: nnx.Module, other: nnx.Module) -> bool:
    ours, theirs = model_arrays(one), model_arrays(other)
    return ours.keys() == theirs.keys() and all(
        a.dtype == theirs[name].dtype and bool((a == theirs[name]).all()) for name, a in ours.items()
    )


def test_a_folder_gives_the_same_model_back(tmp_path: Path):
    model = t2t_jax.create_model("t2t_vit_micro", **SIZES, qk_scale=0.3, rngs=nnx.Rngs(1))
    t2t_jax.save_pretrained(model, tmp_path, metadata={"recipe": {"lr": 1e-3}})
    again = t2t_jax.from_pretrained(tmp_path, drop_path_rate=0.1)
    assert same(model, again)
    assert (again.spec, again.img_size, again.blocks[0].attn.scale) == (model.spec, (32, 48), 0.3)
    assert read_metadata(tmp_path)["recipe"] == {"lr": 1e-3}
    scanned = t2t_jax.from_pretrained(tmp_path, scan_blocks=True)  # the folder has the blocks one by one all the same
    t2t_jax.save_pretrained(scanned, tmp_path / "again")
    assert same(t2t_jax.from_pretrained(tmp_path / "again"), model)


@pytest.mark.parametrize("name", NAMES)
def test_both_frameworks_write_the_same_folder(tmp_path: Path, name: str):
    """The same bits under the same names, the same config.json and card; and each reads the other's."""
    torch_model = t2t_torch.create_model(name, **SIZES)
    t2t_torch.save_pretrained(torch_model, tmp_path / "a")
    jax_model = t2t_jax.from_pretrained(tmp_path / "a")
    t2t_jax.save_pretrained(jax_model, tmp_path / "b")
    assert read_metadata(tmp_path / "a") == read_metadata(tmp_path / "b")
    again = t2t_torch.from_pretrained(tmp_path / "b").state_dict()
    assert again.keys() == torch_model.state_dict().keys()
    assert all(torch.equal(value, again[key]) for key, value in torch_model.state_dict().items())
    images = np.random.RandomState(0).standard_normal((2, 1, 32, 48)).astype(np.float32)
    with torch.no_grad():
        expected = torch_model.eval()(torch.from_numpy(images)).numpy()
    found = np.asarray(jax_model(images.transpose(0, 2, 3, 1)))
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_bfloat16_is_kept_in_the_file(tmp_path: Path):
    model = as_dtype(t2t_jax.create_model("t2t_vit_micro", **SIZES), jnp.bfloat16)
    t2t_jax.save_pretrained(model, tmp_path)
    saved = t2t_torch.read_state_dict(tmp_path / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}
    assert same(as_dtype(t2t_jax.from_pretrained(tmp_path), jnp.bfloat16), model)


def test_other_sizes_are_fitted_as_in_pytorch(tmp_path: Path):
    t2t_torch.save_pretrained(t2t_torch.create_model("t2t_vit_micro", **SIZES), tmp_path)
    other = {"img_size": 64, "in_chans": 3}
    with pytest.warns(UserWarning, match="resized: pos_embed 2x3 -> 4x4"):
        expected = t2t_torch.from_pretrained(tmp_path, **other).state_dict()
    with pytest.warns(UserWarning, match="resized: pos_embed 2x3 -> 4x4") as told:
        fitted = t2t_jax.from_pretrained(tmp_path, **other)
    assert told[0].filename == __file__
    found = to_torch(model_arrays(fitted))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert rel_f(found[key], value.numpy()) <= 1e-6, key
    with pytest.warns(UserWarning, match=r"left out of the file: head\.bias, head\.kernel"):
        assert t2t_jax.from_pretrained(tmp_path, num_classes=5).head.kernel.shape == (64, 5)


def test_a_file_without_classifier_is_refused_unless_other_classes_are_asked_for(tmp_path: Path):
    t2t_torch.save_pretrained(t2t_torch.create_model("t2t_vit_micro", **SIZES), tmp_path)
    weights = t2t_torch.read_state_dict(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("head.")}
    t2t_torch.save_checkpoint(kept, tmp_path / "model.safetensors", metadata={"img_size": "(32, 48)"})
    for same_classes in ({}, {"num_classes": 3}, {"img_size": 64}):
        with pytest.raises(ValueError, match=r"model\.safetensors lacks head\."):
            t2t_jax.from_pretrained(tmp_path, **same_classes)
    with pytest.warns(UserWarning, match=r"kept as they were in the model: head\."):
        assert t2t_jax.from_pretrained(tmp_path, num_classes=5).head.kernel.shape == (64, 5)


def test_a_model_of_unknown_name_or_changed_shape_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="create it with create_model"):
        t2t_jax.save_pretrained(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), tmp_path)
    model = t2t_jax.create_model("t2t_vit_micro", **SIZES)
    model.head = nnx.Linear(64, 5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"no t2t_vit_micro any more: head\.bias \(5,\) instead of \(3,\)"):
        t2t_jax.save_pretrained(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named(tmp_path: Path):
    t2t_jax.save_pretrained(t2t_jax.create_model("t2t_vit_micro", **SIZES), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        t2t_jax.from_pretrained(tmp_path)


PUSH = """
import sys
sys.modules["torch"] = None  # as where it is not installed
import t2t_jax
from t2t_jax.state import model_arrays
model = t2t_jax.create_model("t2t_vit_micro", img_size=32, num_classes=3)
print(t2t_jax.push_to_hub(model, "me/micro", token="hf_test"))
again = model_arrays(t2t_jax.from_pretrained("me/micro"))
print(all((value == again[key]).all() for key, value in model_arrays(model).items()))
fitted = t2t_jax.from_pretrained("me/micro", img_size=64, num_classes=5)
print(fitted.pos_embed.shape, fitted.head.kernel.shape)
"""


def test_to_the_hub_and_back_without_pytorch(tmp_path: Path):
    with fake_hub() as hub:
        address, equal, shapes = ask(hub, PUSH, tmp_path).splitlines()
        assert address.startswith(f"{hub.address}/me/micro/commit/")
        assert equal == "True"
        assert shapes == "(1, 17, 64) (64, 5)"
        assert sorted(hub.repos["me/micro"]) == ["README.md", "config.json", "model.safetensors"]


def test_a_full_disk_is_an_error_of_one_line_and_keeps_the_old_folder(tmp_path: Path):
    model = t2t_jax.create_model("t2t_vit_micro", **SIZES)
    t2t_jax.save_pretrained(model, tmp_path)
    said = on_full_disk(
        "import t2t_jax\nmodel = t2t_jax.create_model('t2t_vit_micro', num_classes=5, img_size=32)",
        f"t2t_jax.save_pretrained(model, {str(tmp_path)!r})",
    )
    assert said == f"cannot write to {tmp_path} (File too large): free space, or choose another\n"
    assert len(list(tmp_path.iterdir())) == 3
    assert same(t2t_jax.from_pretrained(tmp_path), model)


def test_others_may_read_the_weights_where_they_may_read_the_rest(tmp_path: Path):
    t2t_jax.save_pretrained(t2t_jax.create_model("t2t_vit_micro", **SIZES), tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode


@pytest.mark.parametrize("arguments", [{"pretrained": True}, {"embed_dim": 60_000, "depth": 2}, {"num_heads": 0}])
def test_a_configuration_that_makes_no_model_of_this_file(tmp_path: Path, arguments: dict[str, object]):
    """It may neither download another one nor fill the memory."""
    t2t_torch.save_pretrained(t2t_torch.create_model("t2t_vit_micro", **SIZES), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"] |= arguments
    del config["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json"):
        t2t_jax.from_pretrained(tmp_path)
