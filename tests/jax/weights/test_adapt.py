"""Weights fitted to other sizes in JAX: what PyTorch does, to the last digits; and both models then agree."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import t2t_jax
import t2t_torch
from parity.carry.random_weights import randomize
from t2t_jax.checkpoint import init_weights, load_weights, save_model
from t2t_jax.state import model_arrays
from t2t_jax.weights.torch_file import from_torch
from tests.support.golden import rel_f
from tests.support.jax_models import apply

GATE = 1e-13

# ---- both frameworks ----

MODELS = [
    ("t2t_vit_micro", {"depth": 1}),
    ("t2t_vit_micro", {"depth": 1, "tokens_type": "convolution"}),
    ("vit_deit_tiny_distilled_patch16_224", {"embed_dim": 24, "depth": 1}),
]


def source(name: str, **arguments: object) -> torch.nn.Module:
    torch.manual_seed(0)
    net = t2t_torch.create_model(name, **{"num_classes": 5, **arguments}).double().eval()
    randomize(net)
    return net


def both(path: Path, name: str, load=load_weights, **arguments: object) -> tuple[torch.nn.Module, object, tuple]:
    """A model in each framework, filled from `path`."""
    arguments = {"num_classes": 5, **arguments}
    theirs = t2t_torch.create_model(name, **arguments).double().eval()
    ours = t2t_jax.create_model(name, **arguments, param_dtype=jnp.float64)
    return theirs, ours, (t2t_torch.load_checkpoint(theirs, path), load(ours, path))


def assert_same(theirs: torch.nn.Module, ours: object, gate: float = GATE) -> None:
    expected = from_torch({name: value.numpy() for name, value in theirs.state_dict().items()})
    arrays = model_arrays(ours)
    assert arrays.keys() == expected.keys()
    errors = {name: rel_f(arrays[name], expected[name]) for name in arrays}
    assert not {name: error for name, error in errors.items() if not error <= gate}


@pytest.mark.parametrize(("name", "arguments"), MODELS)
@pytest.mark.parametrize("img_size", [384, (288, 160)])
def test_224_to_other_sizes(tmp_path: Path, x64: None, name: str, arguments: dict, img_size: int | tuple[int, int]):
    torch.save(source(name, **arguments).state_dict(), tmp_path / "224.pth")
    theirs, ours, reports = both(tmp_path / "224.pth", name, img_size=img_size, **arguments)
    height, width = theirs.grid_size
    assert reports[0].resized == reports[1].resized == {"pos_embed": f"14x14 -> {height}x{width} (bicubic)"}
    assert_same(theirs, ours)
    x = np.random.RandomState(1).standard_normal((1, 3, *theirs.img_size))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    assert rel_f(apply(ours, jnp.asarray(x.transpose(0, 2, 3, 1))), expected) <= GATE


@pytest.mark.parametrize(
    ("name", "arguments"), [*MODELS, ("t2t_vit_micro", {"depth": 1, "tokens_type": "transformer", "token_dim": 64})]
)
@pytest.mark.parametrize("in_chans", [1, 4, 6])
def test_other_channels(tmp_path: Path, x64: None, name: str, arguments: dict, in_chans: int):
    torch.save(source(name, img_size=32, **arguments).state_dict(), tmp_path / "rgb.pth")
    theirs, ours, reports = both(tmp_path / "rgb.pth", name, img_size=32, in_chans=in_chans, **arguments)
    assert_same(theirs, ours)
    names = from_torch({key: theirs.state_dict()[key].numpy() for key in reports[0].resized})
    assert reports[1].resized.keys() == names.keys()
    assert set(reports[1].resized.values()) == set(reports[0].resized.values())


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".pth"])
def test_everything_at_once(tmp_path: Path, x64: None, suffix: str):
    """From any format; also from an Orbax folder, which needs no PyTorch file at all."""
    path, net = tmp_path / f"m{suffix}", source("t2t_vit_micro", img_size=(32, 48), aux_head=True)
    if suffix:
        t2t_torch.save_checkpoint(net, path, metadata={"img_size": "(32, 48)"})
    else:
        arrays = from_torch({name: value.numpy() for name, value in net.state_dict().items()})
        save_model(path, arrays, {"img_size": [32, 48], "model": "t2t_vit_micro"})
        t2t_torch.save_checkpoint(net, tmp_path / "m.pth", metadata={"img_size": "(32, 48)"})
    theirs = t2t_torch.create_model("t2t_vit_micro", img_size=(48, 32), in_chans=1, num_classes=7).double()
    expected = t2t_torch.load_checkpoint(theirs, path if suffix else tmp_path / "m.pth")
    ours = t2t_jax.create_model("t2t_vit_micro", img_size=(48, 32), in_chans=1, num_classes=7, param_dtype=jnp.float64)
    fresh = model_arrays(ours)
    report = init_weights(ours, path)
    assert report.resized["pos_embed"] == expected.resized["pos_embed"] == "2x3 -> 3x2 (bicubic)"
    assert len(report.resized) == len(expected.resized) == 4
    assert set(report.left_out) == {"head.kernel", "head.bias", "aux_head.kernel", "aux_head.bias"}
    assert set(report.missing) == {"head.kernel", "head.bias"}
    assert set(report.loaded) == model_arrays(ours).keys() - set(report.missing)
    assert report.layout == ("token labeling" if suffix else "Orbax")
    arrays, twin = model_arrays(ours), from_torch({k: v.numpy() for k, v in theirs.state_dict().items()})
    for name in report.loaded:
        assert rel_f(arrays[name], twin[name]) <= GATE
    for name in report.missing:
        np.testing.assert_array_equal(arrays[name], fresh[name])


# ---- what does not fit ----


def test_load_weights_wants_the_classifier(tmp_path: Path):
    """A model to be used as it is has no use for a fresh head."""
    t2t_torch.save_checkpoint(source("t2t_vit_micro", img_size=32), tmp_path / "five.pth")
    t2t_torch.save_checkpoint(source("t2t_vit_micro", img_size=32, num_classes=0), tmp_path / "none.pth")
    model = t2t_jax.create_model("t2t_vit_micro", img_size=32, num_classes=7)
    before = model_arrays(model)
    with pytest.raises(ValueError, match=r"five\.pth does not fit this T2TViT: .* of another shape: head\.bias"):
        load_weights(model, tmp_path / "five.pth")
    with pytest.raises(ValueError, match=r"none\.pth does not fit this T2TViT: .* missing: head\.bias, head\.kernel"):
        load_weights(model, tmp_path / "none.pth")
    assert all(np.array_equal(array, before[name]) for name, array in model_arrays(model).items())
    features = t2t_jax.create_model("t2t_vit_micro", img_size=32, num_classes=0)
    assert set(load_weights(features, tmp_path / "five.pth").left_out) == {"head.kernel", "head.bias"}


@pytest.mark.parametrize("load", [load_weights, init_weights])
@pytest.mark.parametrize("wrong", ["variant", "half", "foreign", "no square"])
def test_what_does_not_fit_is_one_line_and_changes_nothing(tmp_path: Path, load, wrong: str):
    state = source("t2t_vit_micro", img_size=32).state_dict()
    if wrong == "variant":
        state = source("t2t_vit_tiny", img_size=32).state_dict()
    elif wrong == "half":
        state = dict(list(state.items())[::2])
    elif wrong == "foreign":
        state = {f"encoder.{name}": value for name, value in state.items()}
    else:
        state = source("t2t_vit_micro", img_size=(32, 48)).state_dict()
    t2t_torch.save_checkpoint(state, tmp_path / "m.safetensors", metadata={"model": "somebody's"})
    model = t2t_jax.create_model("t2t_vit_micro", img_size=64, num_classes=5)
    before = model_arrays(model)
    with pytest.raises(ValueError, match=r"m\.safetensors does not fit this T2TViT: ") as error:
        load(model, tmp_path / "m.safetensors")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    assert str(error.value).endswith("the file says that it is somebody's")
    assert all(np.array_equal(array, before[name]) for name, array in model_arrays(model).items())


def test_a_grid_that_is_not_square_can_be_given(tmp_path: Path):
    t2t_torch.save_checkpoint(source("t2t_vit_micro", img_size=(32, 48)), tmp_path / "m.safetensors")
    model = t2t_jax.create_model("t2t_vit_micro", img_size=64, num_classes=5)
    with pytest.raises(ValueError, match=r"6 positions, no square: give source_grid=\(height, width\)"):
        load_weights(model, tmp_path / "m.safetensors")
    report = load_weights(model, tmp_path / "m.safetensors", source_grid=(2, 3))
    assert report.resized == {"pos_embed": "2x3 -> 4x4 (bicubic)"}
