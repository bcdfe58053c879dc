"""Batches of images with Grain. `t2t_common.data` defines the data sources and the preprocessing of each image.

`python -m t2t_jax.data` writes shards and benchmarks the input pipeline.
"""

from t2t_jax.data.iterator import TrainIterator
from t2t_jax.data.pipeline import eval_batches, train_iterator

__all__ = ["TrainIterator", "eval_batches", "train_iterator"]
