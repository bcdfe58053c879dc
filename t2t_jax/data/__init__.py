"""Images in, batches out: digits, ImageFolder trees, IDX files, CIFAR binary files; all through Grain."""

from t2t_common.preprocess import Preprocess, evaluation_image
from t2t_jax.data.pipeline import eval_batches, steps_per_epoch, train_iterator
from t2t_jax.data.sources import Source, check_classes, open_source
from t2t_jax.data.transforms import training_image

__all__ = [
    "Preprocess",
    "Source",
    "check_classes",
    "eval_batches",
    "evaluation_image",
    "open_source",
    "steps_per_epoch",
    "train_iterator",
    "training_image",
]
