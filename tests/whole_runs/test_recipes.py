from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from t2t_config import MODELS, RECIPES, Recipe, describe_recipe, epoch_lr, list_models, recipe
from t2t_jax import create_model
from t2t_jax.state import split_model
from t2t_jax.training import from_recipe
from t2t_jax.training.optim import freeze, schedule
from tests.support.golden import golden

OFFICIAL = RECIPES["imagenet_t2t_vit_14"]


def test_schedule_is_timms():
    expected = golden("lr_schedule").arrays["lr"]
    rates = [epoch_lr(OFFICIAL, epoch) for epoch in range(OFFICIAL.total_epochs)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=0)


def test_schedule_by_step_is_constant_within_an_epoch():
    rate = schedule(OFFICIAL, steps_per_epoch=3)
    for step in (0, 2, 3, 29, 30, 31, 929):
        np.testing.assert_allclose(float(rate(step)), epoch_lr(OFFICIAL, step // 3), rtol=1e-6)
    assert float(rate(10_000)) == pytest.approx(OFFICIAL.min_lr)


def test_official_figures():
    figures = {
        "t2t_vit_7": (1e-3, 0.03),
        "t2t_vit_14": (5e-4, 0.05),
        "t2t_vit_19": (5e-4, 0.065),
        "t2t_vit_t_24": (5e-4, 0.065),
    }
    for model, expected in figures.items():
        made = recipe(f"imagenet_{model}")
        assert (made.lr, made.weight_decay) == expected
        assert (made.epochs, made.cooldown_epochs, made.batch_size, made.ema_decay) == (300, 10, 512, 0.99996)
        assert (made.label_smoothing, made.drop_path_rate, made.b1, made.b2) == (0.1, 0.1, 0.9, 0.999)
        assert (made.auto_augment, made.re_prob, made.mixup, made.cutmix) == ("rand-m9-mstd0.5-inc1", 0.25, 0.8, 1.0)
        assert (made.mixup_prob, made.mixup_switch_prob, made.mixup_mode) == (1.0, 0.5, "batch")


def test_augmentation_is_off_by_default():
    for plain in (Recipe(model="t2t_vit_14"), RECIPES["digits"]):
        assert (plain.auto_augment, plain.re_prob, plain.mixes) == (None, 0.0, False)


def test_every_official_model_has_a_recipe_that_opens_with_its_command():
    official = [name for name in list_models() if name.startswith("t2t_") and MODELS[name].in_paper]
    assert len(official) == 14
    for name in official:
        text = describe_recipe(f"imagenet_{name}")
        assert text.startswith(f"python -m t2t_jax.train imagenet_{name} --data")
        assert str(MODELS[name].top1) in text
    for name in ("digits", "fashion_mnist"):
        assert describe_recipe(name).startswith(f"python -m t2t_jax.train {name}")


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "digits"])
def test_every_recipe_builds_its_model(name: str, monkeypatch: pytest.MonkeyPatch):
    """Abstractly, with one block: nothing is computed. The head has the data's classes."""
    made = recipe(name)
    short = {"block_config": (1, 1, 1, 1)} if "dense" in name else {"depth": 1}
    monkeypatch.setattr(from_recipe, "create_model", functools.partial(create_model, **short))
    model = nnx.eval_shape(lambda: from_recipe.build_model(made))
    assert (model.img_size, model.num_classes) == ((made.img_size, made.img_size), made.num_classes or 1000)
    arrays = jax.eval_shape(lambda: split_model(from_recipe.build_model(made))[1:])
    params, buffers = freeze(*arrays, made.frozen or ())
    assert params.keys() | buffers.keys() == arrays[0].keys() | arrays[1].keys()
    assert params["head.kernel"].shape[-1] == {"cifar10": 10, "cifar100": 100, "fashion": 10}.get(
        name.split("_")[0], 1000
    )
    assert describe_recipe(name).startswith(f"python -m t2t_jax.train {name} --data")
    assert ("--init-from" in describe_recipe(name)) == (name.startswith(("cifar", "finetune", "own")))


PUBLISHED = {
    "imagenet_t2t_vit_14_384": 83.3,
    "imagenet_t2t_vit_24_token_labeling": 84.2,
    "imagenet_vit_deit_tiny_patch16_224": 72.2,
    "imagenet_vit_deit_small_patch16_224": 79.9,
    "imagenet_vit_deit_base_patch16_224": 81.8,
    "finetune_vit_deit_base_384": 82.9,
    "cifar10_t2t_vit_14": 98.3,
    "cifar100_t2t_vit_14": 88.4,
    "cifar10_t2t_vit_19": 98.4,
    "cifar100_t2t_vit_19": 89.0,
}


def test_texts_tell_what_was_published_and_where_nothing_was():
    official = {f"imagenet_{name}": MODELS[name].top1 for name in MODELS if name.startswith("t2t_")}
    for name in RECIPES:
        if name not in ("digits", "fashion_mnist"):
            top1 = PUBLISHED.get(name) or official.get(name)
            expected = "No top-1 is published for this recipe." if top1 is None else f"published top-1 is {top1} %."
            assert expected in describe_recipe(name)
            assert max(map(len, describe_recipe(name).splitlines())) <= 120


def test_deits_figures():
    for name in (name for name in RECIPES if name.startswith("imagenet_vit_")):
        made = recipe(name)
        assert (made.optimizer, made.lr, made.batch_size, made.weight_decay) == ("adamw", 1e-3, 1024, 0.05)
        assert (made.total_epochs, made.warmup_epochs, made.warmup_lr, made.min_lr) == (300, 5, 1e-6, 1e-5)
        assert (made.repeated_aug, made.train_interpolation, made.crop_pct) == (3, "bicubic", 0.875)
        assert (made.auto_augment, made.re_prob, made.mixup, made.cutmix) == ("rand-m9-mstd0.5-inc1", 0.25, 0.8, 1.0)
        assert (made.ema_decay, made.drop_path_rate, made.label_smoothing, made.clip_grad) == (None, 0.1, 0.1, None)


@pytest.mark.parametrize("name", ["finetune_t2t_vit_14_384", "finetune_vit_deit_base_384"])
def test_fine_tuning_keeps_to_one_low_rate_after_the_warm_up(name: str):
    made = recipe(name)
    rates = [epoch_lr(made, epoch) for epoch in range(made.total_epochs)]
    np.testing.assert_allclose(rates, [*np.linspace(1e-6, 5e-6, 6)[:5], *25 * [5e-6]], rtol=1e-12)
    assert (made.img_size, made.weight_decay, made.drop_path_rate) == (384, 1e-8, 0.0)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_cifars_rates_are_pytorchs_cosine(scale: float):
    """Of head and backbone, as the authors' transfer_learning.py has them: one eta_min for both."""
    made = recipe("cifar10_t2t_vit_19")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=scale * 0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, eta_min=2e-4, T_max=60)
    expected = []
    for _ in range(60):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert made.total_epochs == 60
    np.testing.assert_allclose([epoch_lr(made, epoch, scale) for epoch in range(60)], expected, rtol=1e-12)
    rate = schedule(made, 7, scale)
    np.testing.assert_allclose([float(rate(7 * epoch + 6)) for epoch in range(60)], expected, rtol=1e-6)


def test_unknown_recipe_suggests_the_nearest():
    with pytest.raises(ValueError, match="'digts': did you mean digits"):
        recipe("digts")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("label_smoothing", 1.0),
        ("ema_decay", 1.0),
        ("clip_grad", 0.0),
        ("scale", (0.9, 0.1)),
        ("mean", (0.5,)),
        ("lr", -1.0),
        ("auto_augment", "rand-x9"),
        ("auto_augment", ""),
        ("mixup", -0.1),
        ("mixup_prob", 1.1),
        ("re_prob", -0.1),
        ("repeated_aug", 0),
        ("padding", -0.1),
        ("momentum", 1.0),
        ("backbone_lr_scale", -1.0),
        ("std", (0.2, 0.0, 0.2)),
        ("eps", 0.0),
        *((name, float(value)) for name in ("lr", "min_lr", "warmup_lr", "weight_decay") for value in ("inf", "nan")),
        ("lr", 1e39),
        ("data_timeout", float("inf")),
        ("scale", (0.1, float("inf"))),
        ("mean", (0.5, float("nan"), 0.5)),
    ],
)
def test_impossible_fields_are_refused_by_name(field: str, value: object):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(OFFICIAL, **{field: value})


def test_fields_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="auto_augment goes with augment 'crop' only"):
        dataclasses.replace(OFFICIAL, augment="affine")
    with pytest.raises(ValueError, match="batch_size must be even, as mixup and cutmix make pairs, got 7"):
        dataclasses.replace(OFFICIAL, batch_size=7)
    assert dataclasses.replace(OFFICIAL, batch_size=7, mixup=0.0, cutmix=0.0).batch_size == 7


LABELLED = RECIPES["imagenet_t2t_vit_24_token_labeling"]


def test_token_labelings_figures():
    """Of TokenLabeling's command for LV-ViT-M, 8 x 128 images, and the paper's weight of the tokens' loss."""
    assert (LABELLED.lr, LABELLED.batch_size, LABELLED.weight_decay, LABELLED.drop_path_rate) == (
        1.6e-3,
        1024,
        0.05,
        0.2,
    )
    assert (LABELLED.epochs, LABELLED.cooldown_epochs, LABELLED.warmup_epochs, LABELLED.min_lr) == (300, 10, 5, 1e-5)
    assert (LABELLED.ema_decay, LABELLED.label_smoothing, LABELLED.re_prob) == (0.99992, 0.1, 0.25)
    assert (LABELLED.mix_token, LABELLED.dense_weight, LABELLED.mixes) == (1.0, 0.5, False)
    assert "--token-labels" in describe_recipe("imagenet_t2t_vit_24_token_labeling")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup": 0.8}, "mixup must be 0 with aux_head: mix_token takes its place, got 0.8"),
        ({"cutmix": 1.0}, "cutmix must be 0"),
        ({"augment": "none", "auto_augment": None}, "augment must be 'crop' with aux_head"),
        ({"model": "vit_deit_tiny_patch16_224"}, "model has to be a T2T-ViT for aux_head"),
        ({"aux_head": False}, "mix_token needs a recipe of token labeling, or --aux-head, got 1.0"),
        ({"mix_token": -1.0}, "mix_token -1.0 is not a number from 0"),
        ({"dense_weight": -0.5}, "dense_weight -0.5 is not a number from 0"),
        ({"mixup_group": 3}, "mixup_group must be even and divide the 1024 images"),
        ({"grad_accum_steps": 128}, "divide the 8 images that are computed at a time, got 16"),
    ],
)
def test_token_labeling_refuses_what_makes_no_sense_with_it(changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LABELLED, **changes)


def test_label_maps_alone_do_nothing():
    with pytest.raises(ValueError, match="token_labels needs a recipe of token labeling, or --aux-head, got 'maps'"):
        dataclasses.replace(OFFICIAL, token_labels="maps")
    assert dataclasses.replace(LABELLED, grad_accum_steps=8, mixup_group=None).mix_token == 1


def test_unknown_model_is_refused():
    with pytest.raises(ValueError, match="did you mean"):
        Recipe(model="t2t_vit_15")
