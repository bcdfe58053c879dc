"""Batches of images with Grain. `t2t_common.data` defines the data sources and the preprocessing of each image.

`python -m t2t_jax.data` writes shards and benchmarks the input pipeline.
"""

from t2t_common.data import (
    Preprocess,
    Source,
    check_classes,
    classes_with_images,
    data_identity,
    evaluation_image,
    head_classes,
    open_source,
    steps_per_epoch,
    training_image,
    with_token_labels,
)
from t2t_jax.data.iterator import TrainIterator
from t2t_jax.data.pipeline import eval_batches, train_iterator

__all__ = [
    "Preprocess",
    "Source",
    "TrainIterator",
    "check_classes",
    "classes_with_images",
    "data_identity",
    "eval_batches",
    "evaluation_image",
    "head_classes",
    "open_source",
    "steps_per_epoch",
    "train_iterator",
    "training_image",
    "with_token_labels",
]
