"""Definition of a recipe, all settings that determine a training run, and the learning rate schedule."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from t2t_config.bounds import check_bounds
from t2t_config.models import model_config
from t2t_config.randaugment import RandAugmentConfig


class FromData:
    """Marks a value of a recipe that `fit_to_data` replaces by one that fits the data.

    A value without the mark, as set by callers and command lines, is kept.
    """


class IntFromData(FromData, int):
    """An integer to be replaced."""


class FloatFromData(FromData, float):
    """A number to be replaced."""


class ExpectedClasses(int):
    """Number of classes of the data set that a recipe is for, as its `num_classes`.

    It is replaced by the number of classes of the actual data; a plain int, as set by callers and command lines, is
    kept.
    """


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All settings that determine a training run. Two runs of one recipe on one machine are bit-identical."""

    model: str
    """Name of the model (see list_models)."""
    data: str | None = None
    """"digits" (scikit-learn's) or a folder: ImageFolder tree, shards (tar, ArrayRecord, TFRecord, Parquet), files of
    IDX or CIFAR."""
    val_fraction: float | None = None
    """Fraction of the images to hold out for validation, for a folder of class folders without train and val. The
    SHA-256 of CLASS/NAME decides, so adding an image moves no other. None: the data are split."""
    img_size: int = 224
    """Side of the square input, in pixels."""
    in_chans: Literal[1, 3] = 3
    """Channels of the input: 1 converts images to gray, 3 to RGB."""
    num_classes: int | None = None
    """Number of classes of the head; None uses that of the data, and so do the recipes unless it is set."""
    mean: tuple[float, ...] | None = None
    """Mean of the pixels in 0..1, one value per channel; None uses the model's own."""
    std: tuple[float, ...] | None = None
    """Standard deviation of the pixels in 0..1, one value per channel; None uses the model's own."""
    crop_pct: float | None = None
    """Evaluation resizes to img_size / crop_pct, then center-crops; None uses the model's own."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Interpolation used when resizing for evaluation; None uses the model's own."""

    epochs: int = 300
    """Number of epochs of the cosine schedule, including warm-up."""
    cooldown_epochs: int = 10
    """Number of additional epochs at min_lr."""
    batch_size: int = 512
    """Number of images per step."""
    lr: float = 5e-4
    """Peak learning rate."""
    min_lr: float = 1e-5
    """Final learning rate."""
    warmup_epochs: int = 10
    """Number of epochs of linear warm-up; the cosine schedule runs from epoch 0 regardless."""
    warmup_lr: float = 1e-6
    """Initial learning rate of the warm-up."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimizer: adamw, with decoupled weight decay; sgd, with momentum (no Nesterov) and weight decay in the
    gradient."""
    weight_decay: float = 0.05
    """Weight decay; not applied to one-dimensional tensors, biases and class tokens, unless decay_all is set."""
    decay_all: bool = False
    """Apply weight decay to all parameters."""
    momentum: float = 0.9
    """Momentum of sgd."""
    backbone_lr_scale: float = 1.0
    """Peak learning rate of all parameters but the classifier, relative to lr. warmup_lr and min_lr are not scaled."""
    layer_decay: float = 1.0
    """Ratio of the learning rates of two consecutive blocks, the earlier over the later, as timm's --layer-decay: the
    whole schedule of a layer is scaled, warmup_lr and min_lr included."""
    frozen: tuple[str, ...] | None = None
    """Names of modules and parameters that are not trained; None trains all."""
    b1: float = 0.9
    """Decay rate of AdamW's first moment."""
    b2: float = 0.999
    """Decay rate of AdamW's second moment."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    clip_grad: float | None = None
    """Maximum global norm of the gradients; None disables clipping."""
    ema_decay: float | None = 0.99996
    """Decay of the exponential moving average of all weights, which is evaluated; None disables it."""
    label_smoothing: float = 0.1
    """Fraction of the target that is spread over all classes."""
    drop_rate: float = 0.0
    """Dropout rate."""
    attn_drop_rate: float = 0.0
    """Dropout rate of the attention weights."""
    drop_path_rate: float = 0.1
    """Stochastic depth rate of the last block; the rates of earlier blocks increase linearly from 0."""

    repeated_aug: int = 1
    """Number of copies of an image in a batch, each augmented differently; an epoch covers 1/repeated_aug of all
    images."""
    augment: Literal["crop", "pad_crop", "affine", "none"] = "crop"
    """Augmentation. crop: random resized crop and flip; pad_crop: resize, black border, random crop and flip (for
    CIFAR); affine: small random shift, zoom and rotation (for digits); none."""
    scale: tuple[float, float] = (0.08, 1.0)
    """crop: range of the crop's area, as a fraction of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """crop: range of the crop's aspect ratio."""
    train_interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    """crop: interpolation used for the crop and RandAugment; random samples bilinear or bicubic each time."""
    padding: float = 1 / 8
    """pad_crop: width of the border, as a fraction of the side."""
    hflip: float = 0.5
    """crop, pad_crop: probability of a horizontal flip."""
    auto_augment: str | None = None
    """crop: RandAugment in timm's notation, e.g. rand-m9-mstd0.5-inc1 (see RandAugmentConfig.parse); None: disabled."""
    max_shift: float = 0.08
    """affine: maximum shift, as a fraction of the side."""
    max_zoom: float = 0.1
    """affine: maximum relative change of size."""
    max_turn: float = 10.0
    """affine: maximum rotation, in degrees."""

    mixup: float = 0.0
    """mixup: alpha, both parameters of the beta distribution of the mixing weight; 0 disables it."""
    cutmix: float = 0.0
    """cutmix: alpha, both parameters of the beta distribution of the area that an image keeps; 0 disables it."""
    mixup_prob: float = 1.0
    """Probability of mixup or cutmix, per batch, pair or image."""
    mixup_switch_prob: float = 0.5
    """Probability of cutmix if both are enabled."""
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    """Scope of one sample of mixup or cutmix: the batch, a pair of images, or a single image (elem)."""
    mixup_group: int | None = None
    """Number of consecutive images within which partners are chosen; None for the whole batch. If every device holds
    whole groups, mixing needs no communication."""
    re_prob: float = 0.0
    """Random erasing: probability that a rectangle of an image is replaced with noise."""

    aux_head: bool = False
    """Token labeling (arXiv 2104.10858): whether to train every token with a second classifier; T2T-ViT with crop."""
    token_labels: str | None = None
    """aux_head: folder with label maps, CLASS/NAME.pt for the image train/CLASS/NAME.jpg, as written by TokenLabeling's
    generate_label.py."""
    dense_weight: float = 0.5
    """aux_head: weight of the tokens' loss, added to the class token's; TokenLabeling's own command uses 1."""
    mix_token: float = 0.0
    """aux_head: alpha, both parameters of the beta distribution of the fraction of tokens that an image keeps when
    partners exchange a box of them (MixToken); 0 disables it."""

    grad_accum_steps: int = 1
    """Number of micro-batches that a batch is split into to save memory; the update is that of the whole batch."""
    remat: bool = False
    """Whether to recompute activations inside blocks in the backward pass, to save memory."""
    scan_blocks: bool = False
    """Whether to run the blocks as a scan over stacked parameters, so that deep models compile as fast as shallow ones;
    JAX only."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation; parameters, optimizer state and moving average stay float32."""
    seed: int = 0
    """Seed for initial weights, order of images, augmentation and dropout."""
    data_threads: int = 4
    """Number of threads that prepare batches; with workers, per worker."""
    data_workers: int = 0
    """Number of processes that prepare batches; 0 uses threads of the main process."""
    device_prefetch: int = 2
    """Number of batches prefetched to the device."""
    data_timeout: float = 600.0
    """Maximum time to wait for a batch, in seconds; a worker or disk that hangs longer ends the run."""
    max_corrupt_images: int = 10
    """Maximum number of unreadable training images: they are reported and replaced by others; one more ends the run."""
    log_every: int = 50
    """Number of steps between two lines of metrics.jsonl."""
    eval_every: int = 1
    """Number of epochs between two evaluations."""
    checkpoint_every: int = 1
    """Number of epochs between two checkpoints; the last epoch always saves one."""
    checkpoint_every_steps: int | None = None
    """Number of steps between two checkpoints, in addition to those of epochs; None saves at the end of epochs only."""
    keep_checkpoints: int = 2
    """Number of latest checkpoints to keep."""
    keep_best: bool = True
    """Also keep the checkpoint of the best evaluation, as checkpoints/best; a better one is saved immediately."""

    def __post_init__(self) -> None:
        model_config(self.model)
        values = {field.name: (getattr(self, field.name), str(field.type)) for field in dataclasses.fields(self)}
        check_bounds({name: value for name, (value, kind) in values.items() if value is not None or "None" not in kind})
        _require(self, "img_size", isinstance(self.img_size, int), "must be one number: training images are square")
        _require(self, "num_classes", self.num_classes != 0, "must be positive: training needs a classifier")
        for name in ("mean", "std"):
            numbers = getattr(self, name)
            fits = numbers is None or len(numbers) == self.in_chans
            _require(self, name, fits, f"needs a number for each of {self.in_chans} channels")

        has_blocks = "depth" in model_config(self.model).sizes
        _require(self, "layer_decay", self.layer_decay == 1.0 or has_blocks, "needs a model with a list of blocks")
        if self.auto_augment is not None:
            try:
                RandAugmentConfig.parse(self.auto_augment)
            except ValueError as error:
                raise ValueError(f"auto_augment {error}") from None
            _require(self, "auto_augment", self.augment == "crop", "goes with augment 'crop' only")
        if self.mixes:
            _require(self, "batch_size", self.batch_size % 2 == 0, "must be even, as mixup and cutmix make pairs")
            group = self.mixup_group or self.batch_size
            fits = group > 0 and group % 2 == 0 and self.batch_size % group == 0
            _require(self, "mixup_group", fits, f"must be even and divide batch_size {self.batch_size}")
        _require(self, "batch_size", self.batch_size % self.grad_accum_steps == 0, "must divide by grad_accum_steps")
        self._check_token_labeling()

    def _check_token_labeling(self) -> None:
        if not self.aux_head:
            for name in ("token_labels", "mix_token"):
                _require(self, name, not getattr(self, name), "needs a recipe of token labeling, or --aux-head")
            return
        _require(
            self, "model", model_config(self.model).arch != "VisionTransformer", "has to be a T2T-ViT for aux_head"
        )
        _require(self, "augment", self.augment == "crop", "must be 'crop' with aux_head, as label maps are cropped too")
        for name in ("mixup", "cutmix"):
            _require(self, name, not getattr(self, name), "must be 0 with aux_head: mix_token takes its place")
        if self.mix_token:
            part = self.batch_size // self.grad_accum_steps
            group = self.mixup_group or part
            fits = group > 0 and group % 2 == 0 and part % group == 0
            _require(
                self, "mixup_group", fits, f"must be even and divide the {part} images that are computed at a time"
            )

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is enabled."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def overrides(self) -> dict[str, Any]:
        """Model arguments that not every model has."""
        return {"aux_head": True} if self.aux_head else {}

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Arguments of `create_model` of both packages."""
        names = ("img_size", "in_chans", "num_classes", "drop_rate", "attn_drop_rate", "drop_path_rate")
        return {"name": self.model, **{name: getattr(self, name) for name in names}, **self.overrides}

    @property
    def total_epochs(self) -> int:
        """Number of epochs of the whole run."""
        return self.epochs + self.cooldown_epochs


def _require(recipe: Recipe, name: str, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} {rule}, got {getattr(recipe, name)!r}")


def epoch_lr(recipe: Recipe, epoch: int, scale: float = 1.0) -> float:
    """Return the learning rate in `epoch` (from 0) for the peak `scale * recipe.lr`: linear warm-up, cosine, `min_lr`.

    As in timm's `CosineLRScheduler` without `warmup_prefix`, the cosine at epoch e uses e, not e - warmup_epochs, so
    the first epoch after the warm-up is already slightly below the peak. As in timm and in PyTorch's
    `CosineAnnealingLR`, all parameter groups share `warmup_lr` and `min_lr`, whatever their peak.
    """
    peak = scale * recipe.lr
    if epoch < recipe.warmup_epochs:
        return recipe.warmup_lr + epoch * (peak - recipe.warmup_lr) / recipe.warmup_epochs
    if epoch >= recipe.epochs:
        return recipe.min_lr
    return recipe.min_lr + 0.5 * (peak - recipe.min_lr) * (1 + math.cos(math.pi * epoch / recipe.epochs))
