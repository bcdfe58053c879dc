"""Recipes for small images that train on a CPU."""

from __future__ import annotations

from t2t_config.recipes.base import ExpectedClasses, Recipe


def digits() -> Recipe:
    """python -m t2t_jax.train digits

    Expect 99 % of the 360 held-out digits. Nothing is downloaded: the images come with scikit-learn (8x8, 1,797 of
    them) and are resized to 32x32.
    """
    return Recipe(
        model="t2t_vit_tiny",
        data="digits",
        img_size=32,
        in_chans=1,
        mean=(0.5,),
        std=(0.5,),
        crop_pct=1.0,
        epochs=30,
        cooldown_epochs=0,
        batch_size=32,
        lr=7e-4,
        warmup_epochs=3,
        ema_decay=0.99,
        drop_path_rate=0.05,
        augment="affine",
        max_shift=0.1,
        log_every=10,
        eval_every=5,
        checkpoint_every=10,
    )


def fashion_mnist() -> Recipe:
    """python -m t2t_jax.train fashion_mnist --data /usr/share/datasets/fashion-mnist

    The folder is that of Debian's package `dataset-fashion-mnist`: four gzipped IDX files (28x28, 60,000 images for
    training, 10,000 for testing); images are resized to 32x32.
    """
    return Recipe(
        model="t2t_vit_tiny",
        img_size=32,
        in_chans=1,
        num_classes=ExpectedClasses(10),
        mean=(0.286,),
        std=(0.353,),
        crop_pct=1.0,
        epochs=5,
        cooldown_epochs=0,
        batch_size=64,
        lr=1e-3,
        warmup_epochs=0,
        ema_decay=0.99,
        label_smoothing=0.05,
        drop_path_rate=0.05,
        augment="affine",
        max_shift=0.05,
        max_turn=5.0,
    )
