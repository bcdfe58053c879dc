"""T2T-ViT as a whole: sizes, token types, heads, dropout, initialisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from t2t_config.shapes import SOFT_SPLITS
from t2t_torch import create_model
from t2t_torch.models.mix_token import MixToken
from t2t_torch.models.t2t_vit import T2TModule
from tests.support.golden import rel_f

NAME = "t2t_vit_micro"


def model(**arguments: object) -> nn.Module:
    torch.manual_seed(0)
    return create_model(NAME, **{"img_size": 32, "num_classes": 10} | arguments).eval()


def images(*shape: int, seed: int = 1, **options: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


# ---- sizes ----


@pytest.mark.parametrize("tokens_type", ["performer", "transformer", "convolution"])
@pytest.mark.parametrize("size", [(32, 32), (48, 32), (32, 80), (33, 47), (30, 100), (3, 3)])
def test_any_input_size(size: tuple[int, int], tokens_type: str):
    net = model(img_size=size, tokens_type=tokens_type)
    tokens = net.forward_features(images(2, 3, *size))
    assert tokens.shape == (2, 1 + net.grid_size[0] * net.grid_size[1], 64)
    assert torch.isfinite(tokens).all()


@pytest.mark.parametrize("size", [(64, 32), (33, 47)])
def test_soft_splits_see_the_patches_where_they_are(size: tuple[int, int]):
    """The tokens of one soft split, taken from the padded image by hand, rows first."""
    net = model(img_size=size)
    x = images(1, 3, *size)
    split = net.tokens_to_token.soft_split0(x).transpose(1, 2)
    padded = F.pad(x, (2, 2, 2, 2))
    rows, columns = net.tokens_to_token.grids[0]
    assert split.shape == (1, rows * columns, 3 * 7 * 7)
    for row, column in [(0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)]:
        patch = padded[0, :, 4 * row : 4 * row + 7, 4 * column : 4 * column + 7]
        assert torch.equal(split[0, row * columns + column], patch.flatten())


def test_a_transposed_image_gives_transposed_tokens():
    """Height and width are not mixed up anywhere: with kernels made symmetric, transposing commutes."""
    torch.manual_seed(0)
    wide, high = (T2TModule(size, "convolution", 3, 8, 4).double() for size in ((32, 64), (64, 32)))
    for name in ("soft_split0", "soft_split1", "project"):
        kernel = getattr(wide, name).weight.data
        kernel.copy_(kernel + kernel.transpose(2, 3))
    high.load_state_dict(wide.state_dict())
    x = images(2, 3, 32, 64, dtype=torch.float64)
    a, b = wide(x).unflatten(1, (2, 4)), high(x.transpose(2, 3)).unflatten(1, (4, 2))
    assert rel_f(a.detach(), b.transpose(1, 2).detach()) <= 1e-13


def test_performer_module_on_a_wide_image_is_the_same_on_its_transpose():
    """Soft splits of a transposed image hold transposed patches: permuted weights give the same tokens."""
    torch.manual_seed(0)
    wide, high = (T2TModule(size, "performer", 3, 8, 4).double().eval() for size in ((32, 64), (64, 32)))
    state = wide.state_dict()
    for key, value in state.items():
        channels, side = {147: (3, 7), 36: (4, 3)}.get(value.shape[-1], (0, 0))
        if side:
            patches = value.unflatten(-1, (channels, side, side))
            state[key] = patches.transpose(-1, -2).flatten(-3)
    high.load_state_dict(state)
    x = images(2, 3, 32, 64, dtype=torch.float64)
    a, b = wide(x).unflatten(1, (2, 4)), high(x.transpose(2, 3)).unflatten(1, (4, 2))
    assert rel_f(a.detach(), b.transpose(1, 2).detach()) <= 1e-13


def test_too_small_an_image_is_refused():
    with pytest.raises(ValueError, match="img_size 2x2 is too small"):
        model(img_size=2)


@pytest.mark.parametrize("in_chans", [1, 4])
def test_any_number_of_channels(in_chans: int):
    net = model(in_chans=in_chans)
    assert net(images(2, in_chans, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match=rf"\(B, {in_chans}, 32, 32\), got \(2, 3, 32, 32\)"):
        net(images(2, 3, 32, 32))


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 3, 32, 48), (2, 32, 32, 3)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="expected images"):
        model()(images(*shape))


# ---- tokens and heads ----


def test_unknown_tokens_type():
    with pytest.raises(ValueError, match="'conv' is not one of performer, transformer, convolution"):
        model(tokens_type="conv")


def test_convolution_tokens_are_three_convolutions():
    net = T2TModule((32, 48), "convolution", 3, 8, 4).double()
    x = images(2, 3, 32, 48, dtype=torch.float64)
    y = x
    layers = ("soft_split0", "soft_split1", "project")
    for layer, (kernel, stride, padding) in zip(layers, SOFT_SPLITS, strict=True):
        weight, bias = (t.detach() for t in getattr(net, layer).parameters())
        columns = F.unfold(y, kernel, stride=stride, padding=padding)
        grid = [side // stride for side in y.shape[2:]]
        y = (weight.flatten(1) @ columns + bias[:, None]).unflatten(2, grid)
    assert rel_f(net(x).detach(), y.flatten(2).transpose(1, 2)) <= 1e-13


def test_logits_come_from_the_class_token():
    net = model()
    x = images(2, 3, 32, 32)
    tokens = net.forward_features(x)
    assert torch.equal(net(x), net.head(tokens[:, 0]))
    net.reset_classifier(0)
    assert torch.equal(net(x), tokens[:, 0])


def test_no_classes_means_features():
    net = model(num_classes=0)
    assert net(images(2, 3, 32, 32)).shape == (2, 64)
    assert not [key for key in net.state_dict() if key.startswith("head")]


@pytest.mark.parametrize("name", [NAME, "t2t_vit_dense"])
def test_reset_classifier(name: str):
    torch.manual_seed(0)
    net = create_model(name, img_size=32, num_classes=10, **({"depth": 1} if name == NAME else {})).eval()
    net.reset_classifier(300)
    assert net(images(1, 3, 32, 32)).shape == (1, 300)
    assert net.num_classes == 300
    assert net.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert net.head.bias.abs().max() == 0


def test_token_labeling_gives_both_heads_in_training_and_their_sum_after():
    """logits + 0.5 * max over tokens (TokenLabeling, tlt/models/lvvit.py)."""
    net, x = model(aux_head=True, performer_drop_rate=0.0), images(2, 3, 32, 32)
    tokens = net.forward_features(x)
    logits, token_logits = net.train()(x)
    assert torch.equal(logits, net.head(tokens[:, 0]))
    assert torch.equal(token_logits, net.aux_head(tokens[:, 1:]))
    assert torch.equal(net.eval()(x), logits + 0.5 * token_logits.max(dim=1).values)
    assert net.get_classifier() == (net.head, net.aux_head)
    net.reset_classifier(4)
    assert net(x).shape == (2, 4)
    net.reset_classifier(0)
    assert torch.equal(net(x), tokens[:, 0])
    assert model().aux_head is None


def test_exchanged_tokens_go_through_the_blocks_of_their_partners_and_come_back():
    """All of them: the class token then sees the partner's image. One of them: both logits tell of it."""
    net, x = model(aux_head=True, performer_drop_rate=0.0).double().train(), images(4, 3, 32, 32, dtype=torch.float64)
    logits, token_logits = net(x)
    swapped, back = net(x, MixToken(0, 2, 0, 2, group=2))
    torch.testing.assert_close(swapped, logits[[1, 0, 3, 2]])
    torch.testing.assert_close(back, token_logits)
    mixed, own = net(x, MixToken(0, 1, 1, 2))
    tokens = net.forward_features(x, MixToken(0, 1, 1, 2))[:, 1:]
    assert torch.equal(own[:, [0, 2, 3]], net.aux_head(tokens)[:, [0, 2, 3]])
    assert torch.equal(own[:, 1], net.aux_head(tokens)[:, 1].flip(0))
    assert not torch.isclose(mixed, logits).any()


def test_positions_are_added():
    net = model()
    x = images(1, 3, 32, 32)
    before = net(x)
    net.pos_embed.data.copy_(net.pos_embed.data.flip(1))
    assert rel_f(net(x).detach(), before.detach()) > 1e-3


def test_qk_scale_replaces_the_default():
    x = images(2, 3, 32, 32)
    assert torch.equal(model(qk_scale=32**-0.5)(x), model()(x))  # 64 channels in 2 heads
    assert not torch.equal(model(qk_scale=64**-0.5)(x), model()(x))


def test_images_of_a_batch_do_not_meet():
    net = model().double()
    x = images(3, 3, 32, 32, dtype=torch.float64)
    alone = torch.cat([net(image[None]) for image in x])
    assert rel_f(net(x).detach(), alone.detach()) <= 1e-13


def test_float64_throughout():
    net = model().double()
    kinds = set()
    for module in net.modules():
        module.register_forward_hook(lambda m, args, out: kinds.add(out.dtype))
    net(images(1, 3, 32, 32, dtype=torch.float64))
    assert kinds == {torch.float64}


# ---- randomness, training ----


def test_evaluation_is_deterministic_and_training_is_not():
    x = images(2, 3, 32, 32)
    net = model()
    assert torch.equal(net(x), net(x))
    assert not torch.equal(net.train()(x), net(x))  # the performers' own dropout, whatever drop_rate says
    net = model(performer_drop_rate=0.0).train()
    assert torch.equal(net(x), net(x))


@pytest.mark.parametrize("rate", ["drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_every_dropout_has_an_effect_in_training_only(rate: str):
    x = images(4, 3, 32, 32)
    net = model(performer_drop_rate=0.0, **{rate: 0.5})
    torch.manual_seed(0)
    assert not torch.equal(net.train()(x), net(x))
    assert torch.equal(net.eval()(x), model()(x))


def test_what_is_frozen_and_what_is_not_decayed():
    net = model()
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {"pos_embed", "tokens_to_token.attention1.w", "tokens_to_token.attention2.w"}
    assert net.no_weight_decay() == {"cls_token"}


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_t_14", "t2t_vit_14_se", "t2t_vit_dense", "t2t_vit_16_ghost"])
def test_initialisation(name: str):
    torch.manual_seed(0)
    net = create_model(name, img_size=32)
    assert net.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    for key, module in net.named_modules():
        if isinstance(module, nn.Linear):
            count = module.weight.numel()
            # The spread of n samples is known to 1 / sqrt(2 n); five times that is never seen by chance.
            assert module.weight.std().item() == pytest.approx(0.02, rel=5 / np.sqrt(2 * count)), key
            assert module.bias is None or module.bias.abs().max() == 0, key
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), key
            assert (module.bias == 0).all(), key
            assert module.eps == 1e-5, key


def test_two_models_are_not_the_same():
    a, b = (create_model(NAME, img_size=32) for _ in range(2))
    assert not torch.equal(a.head.weight, b.head.weight)
    assert not torch.equal(a.tokens_to_token.attention1.w, b.tokens_to_token.attention1.w)
