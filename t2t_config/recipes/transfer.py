"""Transfer of ImageNet weights to CIFAR. Source: yitu-opensource/T2T-ViT, transfer_learning.py and README.md."""

from __future__ import annotations

from t2t_config.recipes.base import ExpectedClasses, Recipe


def cifar(model: str, num_classes: int) -> Recipe:
    """{command} --data /path/to/cifar-{num_classes}-binary --init-from CHECKPOINT

    {expect}
    The authors' recipe, from weights trained on ImageNet: SGD for 60 epochs at 224 px, the new head with lr 0.05, the
    rest with a hundredth of it (their README has the command for T2T-ViT-19 on CIFAR-10). --model selects other models.

    As in their transfer_learning.py, the class token and the last norm are in no parameter group, so they are not
    trained; min_lr applies to all groups, so head and backbone end with the same rate; weight decay applies to all
    other parameters, biases and norms included. Their top-1 is that of the epoch with the best result on the test
    images; here the last epoch is used. They train on the last, smaller batch of an epoch; here it is dropped.
    """
    return Recipe(
        model=model,
        num_classes=ExpectedClasses(num_classes),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        crop_pct=1.0,
        interpolation="bilinear",
        epochs=60,
        cooldown_epochs=0,
        batch_size=64,
        lr=0.05,
        min_lr=2e-4,
        warmup_epochs=0,
        optimizer="sgd",
        momentum=0.9,
        weight_decay=5e-4,
        decay_all=True,
        backbone_lr_scale=0.01,
        frozen=("cls_token", "norm"),
        ema_decay=None,
        label_smoothing=0.0,
        augment="pad_crop",
        padding=1 / 8,
    )
