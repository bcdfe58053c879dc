"""python -m t2t_torch.evaluate --model NAME --checkpoint PATH --data DIR

Top-1 and top-5 accuracy of a checkpoint (.pth, .pth.tar, .safetensors, a run's folder, or a folder written by
save_pretrained), counted exactly over all images.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from t2t_common.data.preprocess import Preprocess
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
from t2t_config.shapes import sizes_of
from t2t_config.weights.metadata import from_text
from t2t_torch.checkpoint import check_model_arguments, load_checkpoint, read_checkpoint
from t2t_torch.checkpoint_file import find_checkpoint
from t2t_torch.create import create_model
from t2t_torch.data import eval_batches
from t2t_torch.training.from_recipe import compute_dtype
from t2t_torch.training.processes import own_device, sum_processes
from t2t_torch.training.step import make_forward

accuracy = functools.partial(count_accuracy, sum_processes=sum_processes)
"""`count_accuracy` over the processes of this package."""


def load_for_evaluation(options: WeightsOptions) -> tuple[Any, Preprocess, dict[str, Any]]:
    """Return the model of `options` with its weights, in evaluation mode, its preprocessing, and the metadata.

    Raises:
        FileNotFoundError, ValueError: There is no such file or model, or they do not match.
    """
    path = options.weights
    with status(f"loading {path}"):
        checkpoint = read_checkpoint(path, use_ema=options.ema)
        saved = sizes_of({name: tensor.shape for name, tensor in checkpoint.state_dict.items()})
        saved |= from_text(checkpoint.metadata)
        arguments, preprocess = options.choose(saved)
        check_model_arguments(arguments, find_checkpoint(path))
        model = create_model(**arguments)
        report = load_checkpoint(model, path, use_ema=options.ema)
    if report.missing:
        raise ValueError(f"{path} has no weights for {', '.join(report.missing)}: leave --num-classes to the file")
    warn_about(report)
    return model.eval(), preprocess, saved


def evaluate(options: EvaluateOptions) -> Result:
    """Evaluate the checkpoint on the validation images.

    Raises:
        FileNotFoundError, ValueError: The checkpoint or the data cannot be used; the message gives the reason.
    """
    model, preprocess, saved = load_for_evaluation(options)
    source = open_validation(options, model.num_classes, saved)
    source, names = labelled_for(model.num_classes, source, options, saved)
    model.to(own_device())
    forward = make_forward(model, dtype=compute_dtype(options.dtype))
    confusion = new_confusion(len(names))
    batches = bar(
        eval_batches(source, preprocess, options.batch_size), "evaluating", -(-len(source) // options.batch_size)
    )
    counts = accuracy(forward, model.state_dict(), batches, confusion=confusion)
    return Result(counts, class_report(confusion, names))


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    return evaluate_command(args, "t2t_torch", __doc__ or "", evaluate)


if __name__ == "__main__":
    cli.run_and_end(main)
