"""python -m t2t_jax.evaluate --model NAME --checkpoint PATH --data DIR

Top-1 and top-5 accuracy of a checkpoint (Orbax folder, .pth, .pth.tar, .safetensors, or a folder written by
save_pretrained), counted exactly over all images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from t2t_common.data import Preprocess
from t2t_common.evaluation.accuracy import count_accuracy
from t2t_common.evaluation.evaluate_command import (
    EvaluateOptions,
    Result,
    evaluate_command,
    labelled_for,
    new_confusion,
    open_validation,
)
from t2t_common.evaluation.per_class import class_report
from t2t_common.evaluation.weights_options import WeightsOptions, warn_about
from t2t_common.io import cli
from t2t_common.io.terminal import bar, status
from t2t_jax.checkpoint import check_model_arguments, load_metadata, load_weights
from t2t_jax.create import create_model
from t2t_jax.data import eval_batches
from t2t_jax.parallel.mesh import local_rows, make_mesh, put_batch, put_tree, sum_processes
from t2t_jax.state import Arrays, model_arrays, split_model
from t2t_jax.training.step import make_forward

Forward = Callable[[Arrays, Any], "jax.Array | np.ndarray"]


accuracy = functools.partial(count_accuracy, sum_processes=sum_processes)
"""`count_accuracy` over the processes of this package."""


def forward_on(mesh: Mesh, graphdef: nnx.GraphDef) -> Forward:
    """Return `make_forward` on the devices of `mesh`: (arrays, this process's images) -> their logits.

    Args:
        mesh: Devices; the number of images must be divisible among them.
        graphdef: Graph definition of the model in evaluation mode.
    """
    if mesh.size == 1:
        return make_forward(graphdef)
    forward = make_forward(graphdef, mesh)
    return lambda arrays, images: local_rows(forward(arrays, put_batch(images, mesh)))


def load_for_evaluation(options: WeightsOptions, *, dtype: Any = None) -> tuple[Any, Preprocess, dict[str, Any]]:
    """Return the model of `options` with its weights, in evaluation mode, its preprocessing, and the metadata.

    Raises:
        FileNotFoundError, ValueError: There is no such checkpoint or model, or they do not match.
    """
    path = options.weights
    with status(f"loading {path}"):
        saved = load_metadata(path)
        arguments, preprocess = options.choose(saved)
        check_model_arguments(arguments, path)
        model = create_model(**arguments, dtype=dtype)
        report = load_weights(model, path, use_ema=options.ema)
    warn_about(report)
    return model, preprocess, saved


def evaluate(options: EvaluateOptions) -> Result:
    """Evaluate the checkpoint on the validation images.

    Raises:
        FileNotFoundError, ValueError: The checkpoint or the data cannot be used; the message gives the reason.
    """
    dtype = jnp.bfloat16 if options.dtype == "bfloat16" else None
    model, preprocess, saved = load_for_evaluation(options, dtype=dtype)
    source = open_validation(options, model.num_classes, saved)
    source, names = labelled_for(model.num_classes, source, options, saved)
    mesh = make_mesh()
    forward = forward_on(mesh, split_model(model)[0])
    batch_size = -(-options.batch_size // mesh.size) * mesh.size
    confusion = new_confusion(len(names))
    batches = bar(eval_batches(source, preprocess, batch_size), "evaluating", -(-len(source) // batch_size))
    counts = accuracy(forward, put_tree(model_arrays(model), mesh), batches, confusion=confusion)
    return Result(counts, class_report(confusion, names))


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    return evaluate_command(args, "t2t_jax", __doc__ or "", evaluate)


if __name__ == "__main__":
    cli.run_and_end(main)
