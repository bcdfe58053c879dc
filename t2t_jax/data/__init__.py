"""Images in, batches out: digits, ImageFolder trees, tar and ArrayRecord shards, IDX and CIFAR files; through Grain.

`python -m t2t_jax.data` writes shards and measures the input.
"""

from t2t_common.preprocess import Preprocess, evaluation_image
from t2t_jax.data.iterator import TrainIterator
from t2t_jax.data.opening import check_classes, open_source
from t2t_jax.data.pipeline import eval_batches, steps_per_epoch, train_iterator
from t2t_jax.data.sources import Source
from t2t_jax.data.transforms import training_image

__all__ = [
    "Preprocess",
    "Source",
    "TrainIterator",
    "check_classes",
    "eval_batches",
    "evaluation_image",
    "open_source",
    "steps_per_epoch",
    "train_iterator",
    "training_image",
]
