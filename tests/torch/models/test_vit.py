"""ViT and DeiT: patches, the two tokens and heads of the distilled ones, `pre_logits`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from t2t_torch.models.vit import VisionTransformer
from tests.support.golden import rel_f


def model(**arguments: object) -> VisionTransformer:
    torch.manual_seed(0)
    defaults = {
        "img_size": 32,
        "patch_size": 8,
        "num_classes": 10,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
    }
    return VisionTransformer(**defaults | arguments).eval()


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(32, 32), (16, 40), (37, 30)])
def test_any_input_size(size: tuple[int, int]):
    net = model(img_size=size)
    rows, columns = size[0] // 8, size[1] // 8
    assert net.grid_size == (rows, columns)
    assert net.forward_features(images(2, 3, *size)).shape == (2, 1 + rows * columns, 16)


def test_patches_are_embedded_rows_first_and_the_rest_is_dropped():
    net = model(img_size=(20, 30))
    x = images(1, 3, 20, 30)
    weight = net.patch_embed.proj.weight.flatten(1)
    out = net.patch_embed(x)
    for row in range(2):
        for column in range(3):
            patch = x[0, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].flatten()
            expected = weight @ patch + net.patch_embed.proj.bias
            assert rel_f(out[0, 3 * row + column].detach(), expected.detach()) < 1e-6


def test_image_smaller_than_a_patch_is_refused():
    with pytest.raises(ValueError, match="img_size 7x32 is smaller than one patch of 8"):
        model(img_size=(7, 32))


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 3, 40, 32)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="expected images"):
        model()(images(*shape))


def test_logits_come_from_the_class_token():
    net = model()
    x = images(2, 3, 32, 32)
    assert torch.equal(net(x), net.head(net.forward_features(x)[:, 0]))
    assert torch.equal(model(num_classes=0)(x), model(num_classes=0).forward_features(x)[:, 0])


def test_distilled_gives_both_heads_in_training_and_their_mean_after():
    net = model(distilled=True)
    x = images(2, 3, 32, 32)
    tokens = net.forward_features(x)
    assert tokens.shape == (2, 2 + 16, 16)
    logits, logits_dist = net.train()(x)
    assert torch.equal(logits, net.head(tokens[:, 0]))
    assert torch.equal(logits_dist, net.head_dist(tokens[:, 1]))
    assert torch.equal(net.eval()(x), (logits + logits_dist) / 2)
    net.reset_classifier(4)
    assert net(x).shape == (2, 4)
    net.reset_classifier(0)
    assert torch.equal(net(x), (tokens[:, 0] + tokens[:, 1]) / 2)


def test_pre_logits_is_a_tanh_layer_before_the_head():
    net = model(representation_size=24)
    x = images(2, 3, 32, 32)
    hidden = torch.tanh(net.pre_logits.fc(net.forward_features(x)[:, 0]))
    assert torch.equal(net(x), net.head(hidden))
    net.reset_classifier(3)
    assert net(x).shape == (2, 3)
    assert not hasattr(model(representation_size=24, distilled=True).pre_logits, "fc")


def test_norm_eps():
    assert {m.eps for m in model().modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    assert {m.eps for m in model(norm_eps=1e-5).modules() if isinstance(m, nn.LayerNorm)} == {1e-5}


def test_everything_is_trained_and_tokens_are_not_decayed():
    net = model(distilled=True)
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert net.no_weight_decay() == {"pos_embed", "cls_token", "dist_token"}


def test_initialisation():
    net = model(embed_dim=192, num_heads=3, distilled=True)
    for token in (net.cls_token, net.dist_token, net.pos_embed):
        assert token.std().item() == pytest.approx(0.02, rel=0.25)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.07)
            assert module.bias.abs().max() == 0
