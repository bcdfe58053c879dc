"""A recipe that needs no download and no accelerator."""

from __future__ import annotations

from t2t_config.recipes.base import Recipe


def digits() -> Recipe:
    """python -m t2t_jax.train digits

    Expect 99 % of the 360 held-out digits in about a minute on two CPU cores. Nothing is downloaded: the
    images are scikit-learn's own (8x8, 1,797 of them), resized to 32x32.
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
