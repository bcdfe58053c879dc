"""Data pipeline: readers of image folders, shards, archives and files of many formats (see readers); augmentation.

Contains everything that is independent of how examples are batched: by Grain in `t2t_jax`, by a DataLoader in
`t2t_torch`.
"""

from t2t_common.data.augment.transforms import training_image
from t2t_common.data.corrupt import Unreadable
from t2t_common.data.examples import EvalExamples, TrainExamples, steps_per_epoch
from t2t_common.data.fingerprint import classes_with_images, data_identity
from t2t_common.data.preprocess import Preprocess, evaluation_image
from t2t_common.data.readers.formats import check_classes, head_classes, open_source
from t2t_common.data.readers.sources import Source
from t2t_common.data.token_labels import with_token_labels

__all__ = [
    "EvalExamples",
    "Preprocess",
    "Source",
    "TrainExamples",
    "Unreadable",
    "check_classes",
    "classes_with_images",
    "data_identity",
    "evaluation_image",
    "head_classes",
    "open_source",
    "steps_per_epoch",
    "training_image",
    "with_token_labels",
]
