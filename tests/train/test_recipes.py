from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from t2t_config import MODELS, RECIPES, Recipe, describe_recipe, epoch_lr, list_models, recipe
from t2t_jax.optim import schedule
from tests.golden import golden

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


def test_unknown_model_is_refused():
    with pytest.raises(ValueError, match="did you mean"):
        Recipe(model="t2t_vit_15")
