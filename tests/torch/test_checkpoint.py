"""Weights into models: what fits, what is fitted, what is refused; and always all or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2t_torch import create_model
from t2t_torch.checkpoint import load_checkpoint, resize_pos_embed, save_checkpoint
from tests.support.golden import golden, golden_input, golden_weights, rel_f


def micro(seed: int = 0, **arguments: object) -> nn.Module:
    torch.manual_seed(seed)
    return create_model("t2t_vit_micro", **{"img_size": 32, "num_classes": 10} | arguments).eval()


def vit(seed: int = 0, **arguments: object) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"img_size": 32, "num_classes": 10, "embed_dim": 24, "depth": 1}
    return create_model("vit_deit_tiny_distilled_patch16_224", **sizes | arguments).eval()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def write(state_dict: dict[str, Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save(state_dict, path)
    return path


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


# ---- what fits ----


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_everything_is_loaded(tmp_path: Path, name: str):
    source, model = micro(0), micro(1)
    save_checkpoint(source, tmp_path / name)
    report = load_checkpoint(model, tmp_path / name)
    assert_equal(model.state_dict(), source.state_dict())
    assert report.loaded == tuple(source.state_dict())
    assert (report.resized, report.left_out, report.missing) == ({}, (), ())
    assert f"{name}: {len(report.loaded)} tensors loaded" in str(report)


def test_positions_and_random_features_come_from_the_file(tmp_path: Path):
    weights = snapshot(micro())
    weights["pos_embed"] += 1e-4  # as the EMA of the released weights drifts
    weights["tokens_to_token.attention1.w"] += 1e-4
    model = micro(1)
    load_checkpoint(model, write(weights, tmp_path))
    assert_equal(model.state_dict(), weights)


def test_golden_logits_through_a_release_file(tmp_path: Path):
    reference = golden("t2t_vit_7_img64")
    weights = golden_weights("t2t_vit_7", reference.keys_and_shapes)
    model = create_model("t2t_vit_7", img_size=64, num_classes=10).double().eval()
    tensors = snapshot(model) | {name: torch.from_numpy(value) for name, value in weights.items()}
    torch.save({"state_dict_ema": tensors}, tmp_path / "71.7_T2T_ViT_7.pth.tar")
    report = load_checkpoint(model, tmp_path / "71.7_T2T_ViT_7.pth.tar")
    assert (report.entry, report.is_ema) == ("state_dict_ema", True)
    assert "'state_dict_ema' (EMA weights)" in str(report)
    logits = model(torch.from_numpy(golden_input(reference.meta))).detach()
    assert rel_f(logits, reference.arrays["logits"]) <= 1e-12


def test_use_ema_picks(tmp_path: Path):
    raw, ema, model = micro(0), micro(1), micro(2)
    torch.save({"state_dict": raw.state_dict(), "state_dict_ema": ema.state_dict()}, tmp_path / "both.pth")
    assert load_checkpoint(model, tmp_path / "both.pth").entry == "state_dict_ema"
    assert_equal(model.state_dict(), ema.state_dict())
    report = load_checkpoint(model, tmp_path / "both.pth", use_ema=False)
    assert_equal(model.state_dict(), raw.state_dict())
    assert "'state_dict' (raw weights)" in str(report)


# ---- another image size ----


@pytest.mark.parametrize("make", [micro, vit])
@pytest.mark.parametrize("img_size", [64, (48, 80)])
def test_load_for_another_image_size(tmp_path: Path, make, img_size: int | tuple[int, int]):
    source, model = make(0), make(1, img_size=img_size)
    report = load_checkpoint(model, write(source.state_dict(), tmp_path))
    prefix = source.num_prefix_tokens
    table = source.pos_embed.detach()
    image = table[:, prefix:].reshape(1, 2, 2, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=model.grid_size, mode="bicubic").permute(0, 2, 3, 1)
    assert torch.equal(model.pos_embed, torch.cat((table[:, :prefix], image.flatten(1, 2)), dim=1))
    rest = {name: value for name, value in model.state_dict().items() if name != "pos_embed"}
    assert_equal(rest, {name: value for name, value in source.state_dict().items() if name != "pos_embed"})
    assert report.resized == {"pos_embed": f"2x2 -> {model.grid_size[0]}x{model.grid_size[1]} (bicubic)"}
    assert "pos_embed" in report.loaded
    assert model(torch.zeros(1, 3, *model.img_size)).shape == (1, 10)


def test_a_float64_model_gets_float64_positions(tmp_path: Path):
    source, model = micro(), micro(img_size=48).double()
    load_checkpoint(model, write(source.state_dict(), tmp_path))
    expected = resize_pos_embed(source.pos_embed.detach().double(), (2, 2), (3, 3))
    assert torch.equal(model.pos_embed, expected)


def test_a_grid_that_is_not_square_has_to_be_given(tmp_path: Path):
    source, model = micro(img_size=(32, 48)), micro(1, img_size=64)
    path, before = write(source.state_dict(), tmp_path), snapshot(model)
    with pytest.raises(ValueError, match=r"6 positions, no square: give source_grid=\(height, width\)"):
        load_checkpoint(model, path)
    with pytest.raises(ValueError, match="does not hold 1 \\+ 3x3 tokens"):
        load_checkpoint(model, path, source_grid=(3, 3))
    assert_equal(model.state_dict(), before)
    report = load_checkpoint(model, path, source_grid=(2, 3))
    assert report.resized == {"pos_embed": "2x3 -> 4x4 (bicubic)"}
    assert torch.equal(model.pos_embed, resize_pos_embed(source.pos_embed.detach(), (2, 3), (4, 4)))


def test_as_many_tokens_on_another_grid(tmp_path: Path):
    source, model = micro(img_size=(32, 48)), micro(1, img_size=(48, 32))
    path = write(source.state_dict(), tmp_path)
    assert load_checkpoint(model, path).resized == {}
    assert torch.equal(model.pos_embed, source.pos_embed)
    assert load_checkpoint(model, path, source_grid=(2, 3)).resized == {"pos_embed": "2x3 -> 3x2 (bicubic)"}


def test_the_grid_that_the_file_tells(tmp_path: Path):
    """Metadata give the img_size of a table that is for no square, or for another with as many tokens."""
    source = micro(img_size=(32, 48))
    save_checkpoint(source, tmp_path / "w.pth", metadata={"img_size": "(32, 48)"})
    for size, grid in (64, (4, 4)), ((48, 32), (3, 2)):
        model = micro(1, img_size=size)
        report = load_checkpoint(model, tmp_path / "w.pth")
        assert report.resized == {"pos_embed": f"2x3 -> {grid[0]}x{grid[1]} (bicubic)"}
        assert torch.equal(model.pos_embed, resize_pos_embed(source.pos_embed.detach(), (2, 3), grid))


@pytest.mark.parametrize("text", ["(32, 64)", "32, 48, 3", "big", "None", "-7", "[[]]"])
def test_an_img_size_that_the_table_belies_is_not_believed(tmp_path: Path, text: str):
    source = micro(img_size=(32, 48))
    save_checkpoint(source, tmp_path / "w.pth", metadata={"img_size": text})
    assert load_checkpoint(micro(1, img_size=(48, 32)), tmp_path / "w.pth").resized == {}


# ---- other channels (what is done: test_adapt.py) ----


@pytest.mark.parametrize("tokens_type", ["performer", "transformer", "convolution"])
def test_another_number_of_channels(tmp_path: Path, tokens_type: str):
    source = micro(tokens_type=tokens_type)
    model = micro(1, tokens_type=tokens_type, in_chans=4)
    report = load_checkpoint(model, write(source.state_dict(), tmp_path))
    layers = {"performer": "kqv", "transformer": "attn.qkv"}
    linear = [f"attention1.{layers.get(tokens_type)}.weight", "attention1.norm1.weight", "attention1.norm1.bias"]
    names = ["soft_split0.weight"] if tokens_type == "convolution" else linear
    assert report.resized == {
        f"tokens_to_token.{name}": f"3 -> 4 channels (repeated{'' if 'norm1' in name else ', times 3/4'})"
        for name in names
    }
    assert f"resized: tokens_to_token.{names[0]} 3 -> 4 channels" in str(report)
    assert (report.left_out, report.missing) == ((), ())
    rest = {name: value for name, value in model.state_dict().items() if name not in report.resized}
    assert_equal(rest, {name: value for name, value in source.state_dict().items() if name not in report.resized})


def test_everything_at_once(tmp_path: Path):
    model = micro(1, img_size=(48, 80), in_chans=1, num_classes=7)
    report = load_checkpoint(model, write(micro().state_dict(), tmp_path))
    assert report.resized.keys() == {
        "pos_embed",
        "tokens_to_token.attention1.kqv.weight",
        "tokens_to_token.attention1.norm1.weight",
        "tokens_to_token.attention1.norm1.bias",
    }
    assert report.left_out == report.missing == ("head.weight", "head.bias")
    assert set(report.loaded) | set(report.missing) == set(model.state_dict())


# ---- other classes ----


def test_another_number_of_classes_keeps_the_models_own_head(tmp_path: Path):
    source, model = micro(0), micro(1, num_classes=7)
    head = snapshot(model.head)
    report = load_checkpoint(model, write(source.state_dict(), tmp_path))
    assert_equal(snapshot(model.head), head)
    assert_equal(model.blocks.state_dict(), source.blocks.state_dict())
    assert report.left_out == report.missing == ("head.weight", "head.bias")
    assert "head.weight" not in report.loaded
    assert "left out of the file: head.weight, head.bias" in str(report)
    assert "kept as they were in the model: head.weight, head.bias" in str(report)


def test_both_heads_of_a_distilled_model(tmp_path: Path):
    model = vit(1, num_classes=7)
    report = load_checkpoint(model, write(vit(0).state_dict(), tmp_path))
    assert report.left_out == ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")


def test_the_second_head_of_token_labeling(tmp_path: Path):
    source, plain, other = micro(aux_head=True), micro(1), micro(1, aux_head=True, num_classes=7)
    path = write(source.state_dict(), tmp_path)
    report = load_checkpoint(plain, path)
    assert (report.layout, report.left_out) == ("token labeling", ("aux_head.weight", "aux_head.bias"))
    report = load_checkpoint(other, path)
    assert report.left_out == ("head.weight", "head.bias", "aux_head.weight", "aux_head.bias")
    model = micro(2, aux_head=True)
    assert load_checkpoint(model, path).left_out == ()
    assert_equal(model.state_dict(), source.state_dict())
    report = load_checkpoint(model, write(plain.state_dict(), tmp_path))
    assert (report.layout, report.missing) == ("official", ("aux_head.weight", "aux_head.bias"))


def test_features_only(tmp_path: Path):
    source, model = micro(0), micro(1, num_classes=0)
    report = load_checkpoint(model, write(source.state_dict(), tmp_path))
    assert (report.left_out, report.missing) == (("head.weight", "head.bias"), ())
    back = micro(2)
    report = load_checkpoint(back, write(model.state_dict(), tmp_path))
    assert (report.left_out, report.missing) == ((), ("head.weight", "head.bias"))
    assert_equal(back.norm.state_dict(), source.norm.state_dict())


def test_pre_logits_goes_with_the_in21k_head(tmp_path: Path):
    sizes = {"img_size": 32, "embed_dim": 24, "depth": 1}
    source = create_model("vit_base_patch16_224_in21k", representation_size=24, **sizes)
    path = write(source.state_dict(), tmp_path)
    fine_tuned = create_model("vit_base_patch16_224_in21k", num_classes=10, **sizes)
    report = load_checkpoint(fine_tuned, path)
    assert report.left_out == ("head.weight", "head.bias", "pre_logits.fc.weight", "pre_logits.fc.bias")
    with pytest.raises(ValueError, match=r"unexpected \(pre_logits\.fc\.weight"):
        load_checkpoint(create_model("vit_base_patch16_224", num_classes=21_843, **sizes), path)


# ---- what does not fit ----


def refusal(model: nn.Module, path: Path) -> str:
    """The message of the ValueError: one line that names the file; the model has to be as it was."""
    before = snapshot(model)
    with pytest.raises(ValueError, match=path.name) as error:
        load_checkpoint(model, path)
    assert_equal(model.state_dict(), before)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    return str(error.value)


def test_weights_of_another_variant(tmp_path: Path):
    path = write(create_model("t2t_vit_tiny", img_size=32).state_dict(), tmp_path)
    message = refusal(micro(), path)
    assert "does not fit this T2TViT" in message
    assert "22 unexpected (blocks.2.norm1.weight, blocks.2.norm1.bias, blocks.2.attn.qkv.weight and 19 more)" in message
    assert "cls_token (1, 1, 128) instead of (1, 1, 64)" in message
    assert message.endswith("looks like t2t_vit_tiny")


def test_what_a_file_looks_like_does_not_depend_on_size_or_classes(tmp_path: Path):
    with torch.device("meta"):
        shapes = create_model("t2t_vit_t_14", img_size=64, num_classes=3).state_dict()
    path = write({name: torch.zeros(value.shape) for name, value in shapes.items()}, tmp_path)
    assert refusal(micro(), path).endswith("looks like t2t_vit_t_14")


def test_foreign_names(tmp_path: Path):
    path = write({f"encoder.{name}": value for name, value in micro().state_dict().items()}, tmp_path)
    assert "like none of list_models()" in refusal(micro(), path)


@pytest.mark.parametrize("gone", ["norm.bias", "pos_embed", "head.bias", "tokens_to_token.attention1.w"])
def test_one_missing_name(tmp_path: Path, gone: str):
    weights = snapshot(micro())
    del weights[gone]
    message = refusal(micro(1), write(weights, tmp_path))
    assert f"this T2TViT: 1 missing ({gone}); the file looks like t2t_vit_micro" in message


def test_half_the_names_missing(tmp_path: Path):
    weights = dict(list(micro().state_dict().items())[::2])
    assert "28 missing" in refusal(micro(1), write(weights, tmp_path))


def test_one_unexpected_name(tmp_path: Path):
    weights = snapshot(micro()) | {"extra.weight": torch.zeros(2)}
    assert "1 unexpected (extra.weight)" in refusal(micro(1), write(weights, tmp_path))


def test_unreadable_file_leaves_the_model(tmp_path: Path):
    path = write(micro().state_dict(), tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "truncated, corrupt" in refusal(micro(1), path)


@pytest.mark.parametrize("img_size", ["(" * 5000, "{[]: 1}", "Infinity", "1e999"])
def test_a_saved_size_that_makes_no_sense_is_none(tmp_path: Path, img_size: str):
    model = create_model("t2t_vit_micro", img_size=16)
    save_checkpoint(model, tmp_path / "w.safetensors", metadata={"img_size": img_size})
    assert not load_checkpoint(model, tmp_path / "w.safetensors").resized
