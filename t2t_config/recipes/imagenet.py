"""ImageNet-1k recipes: T2T-ViT by its authors' recipe or with token labels, ViT and DeiT by DeiT's, 384-px fine-tuning.

Sources: T2T-ViT (arXiv 2101.11986, section 4.1; yitu-opensource/T2T-ViT, README.md and main.py), DeiT (arXiv
2012.12877, table 9; facebookresearch/deit, README_deit.md and main.py), token labeling (arXiv 2104.10858;
zihangJiang/TokenLabeling, README.md and main.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from t2t_config.models import model_config
from t2t_config.recipes.base import ExpectedClasses, Recipe

_LR_AND_WEIGHT_DECAY: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("t2t_vit_7", "t2t_vit_10", "t2t_vit_12"), (1e-3, 0.03)),
    **dict.fromkeys(("t2t_vit_19", "t2t_vit_24", "t2t_vit_t_19", "t2t_vit_t_24"), (5e-4, 0.065)),
}


def imagenet(model: str) -> Recipe:
    """Return the recipe that trains `model` on ImageNet-1k: `deit` for ViT and DeiT, `t2t` for all others."""
    return deit(model) if model_config(model).arch == "VisionTransformer" else t2t(model)


def t2t(model: str) -> Recipe:
    """{command} --data /path/to/imagenet

    {expect}
    The authors' complete recipe for ImageNet-1k (folders train/ and val/, one subfolder per class): schedule,
    optimizer, RandAugment, mixup, cutmix, random erasing, moving average (which is evaluated).
    """
    lr, weight_decay = _LR_AND_WEIGHT_DECAY.get(model, (5e-4, 0.05))
    return Recipe(
        model=model,
        lr=lr,
        weight_decay=weight_decay,
        num_classes=ExpectedClasses(1000),
        auto_augment="rand-m9-mstd0.5-inc1",
        mixup=0.8,
        cutmix=1.0,
        mixup_group=16,
        re_prob=0.25,
    )


def t2t_384(model: str) -> Recipe:
    """{command} --data /path/to/imagenet

    {expect}
    The authors' recipe with their --img-size 384, from scratch: according to their README, this model is trained at
    this image size, with the hyper-parameters of the other sizes.
    """
    return dataclasses.replace(t2t(model), img_size=384)


def token_labeling(model: str) -> Recipe:
    """{command} --data /path/to/imagenet --token-labels /path/to/label_data

    {expect}
    Token labeling: every token has its own target, from label maps computed by a trained network (TokenLabeling's
    README has a download for ImageNet-1k, by NFNet-F6, and the script that creates them). T2T-ViT's authors publish the
    weights but not the command; these are TokenLabeling's settings for its model of that size, LV-ViT-M, with the
    paper's weight 0.5 of the tokens' loss. Not reproduced: its maps are cropped with height and width swapped.
    --model selects other T2T-ViTs.
    """
    return Recipe(
        model=model,
        num_classes=ExpectedClasses(1000),
        batch_size=1024,
        lr=1.6e-3,
        min_lr=1e-5,
        warmup_epochs=5,
        weight_decay=0.05,
        drop_path_rate=0.2,
        ema_decay=0.99992,
        auto_augment="rand-m9-mstd0.5-inc1",
        re_prob=0.25,
        aux_head=True,
        dense_weight=0.5,
        mix_token=1.0,
        mixup_group=16,
    )


def deit(model: str) -> Recipe:
    """{command} --data /path/to/imagenet

    {expect}
    DeiT's recipe for ImageNet-1k (folders train/ and val/, one subfolder per class) without distillation: AdamW with
    lr 5e-4 per 512 images (so 1e-3), RandAugment, mixup, cutmix, random erasing, each image three times in a batch. The
    raw weights are evaluated; DeiT also keeps a moving average but never evaluates it. Not reproduced: DeiT's loop
    applies every learning rate one epoch late.

    There is no recipe for the distilled models, as they need a teacher, which is not included.
    """
    return Recipe(
        model=model,
        img_size=model_config(model).img_size,
        num_classes=ExpectedClasses(1000),
        crop_pct=0.875,
        interpolation="bicubic",
        epochs=300,
        cooldown_epochs=0,
        batch_size=1024,
        lr=1e-3,
        min_lr=1e-5,
        warmup_epochs=5,
        warmup_lr=1e-6,
        weight_decay=0.05,
        ema_decay=None,
        repeated_aug=3,
        train_interpolation="bicubic",
        auto_augment="rand-m9-mstd0.5-inc1",
        mixup=0.8,
        cutmix=1.0,
        mixup_group=16,
        re_prob=0.25,
    )


def finetune_384(model: str) -> Recipe:
    """{command} --data /path/to/imagenet --init-from CHECKPOINT

    {expect}
    Fine-tunes weights trained at 224 px; the position table is resized. DeiT's settings for this step: 30 epochs,
    lr 5e-6 throughout after the warm-up, almost no weight decay, no stochastic depth (DeiT fine-tunes in evaluation
    mode). {note}
    """
    return dataclasses.replace(
        imagenet(model),
        img_size=384,
        epochs=30,
        cooldown_epochs=0,
        batch_size=512,
        lr=5e-6,
        min_lr=5e-6,
        warmup_epochs=5,
        weight_decay=1e-8,
        drop_path_rate=0.0,
        ema_decay=None,
    )
