"""python -m t2t_torch.evaluate --model NAME --checkpoint PATH --data DIR

Top-1 and top-5 accuracy of a checkpoint (.pth, .pth.tar, .safetensors, a run's folder, or a folder written by
save_pretrained), counted exactly over all images.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from t2t_common.data import open_source
from t2t_common.data.iterator import Batch
from t2t_common.data.preprocess import Preprocess
from t2t_common.evaluation.accuracy import Accuracy, Forward, count
from t2t_common.evaluation.evaluate_command import EvaluateOptions, Result, labelled_for, new_confusion, show_result
from t2t_common.evaluation.per_class import class_report
from t2t_common.evaluation.weights_options import WeightsOptions
from t2t_common.io import cli
from t2t_common.io.files import check_target
from t2t_common.io.terminal import bar, status
from t2t_config.shapes import sizes_of
from t2t_config.weights.metadata import from_text
from t2t_torch.checkpoint import check_described, load_checkpoint, read_checkpoint
from t2t_torch.checkpoint_file import find_checkpoint
from t2t_torch.create import create_model
from t2t_torch.data import eval_batches
from t2t_torch.training.from_recipe import compute_dtype
from t2t_torch.training.processes import own_device, sum_processes
from t2t_torch.training.step import make_forward


def accuracy(
    forward: Forward, arrays: Any, batches: Iterable[Batch], *, confusion: np.ndarray | None = None
) -> Accuracy:
    """Return exact counts over all real images in `batches`, summed over all processes.

    The arguments are those of `t2t_common.evaluation.accuracy.count`.
    """
    own = None if confusion is None else np.zeros_like(confusion)
    counts = count(forward, arrays, batches, confusion=own)
    if confusion is not None and own is not None:
        confusion += sum_processes(own)
    return Accuracy(*map(int, sum_processes(counts)))


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
        arguments, how = options.choose(saved)
        check_described(arguments, find_checkpoint(path))
        model = create_model(**arguments)
        report = load_checkpoint(model, path, use_ema=options.ema)
    if report.missing:
        raise ValueError(f"{path} has no weights for {', '.join(report.missing)}: leave --num-classes to the file")
    if report.is_notable:
        print(report, file=sys.stderr)
    if report.not_finite:
        print(f"warning: {report.doubt}", file=sys.stderr)
    return model.eval(), how, saved


def evaluate(options: EvaluateOptions) -> Result:
    """Evaluate the checkpoint on the validation images.

    Raises:
        FileNotFoundError, ValueError: The checkpoint or the data cannot be used; the message gives the reason.
    """
    model, how, saved = load_for_evaluation(options)
    source = open_source(options.data, "val", model.num_classes)
    source, names = labelled_for(model.num_classes, source, options, saved)
    model.to(own_device())
    forward = make_forward(model, dtype=compute_dtype(options.dtype))
    confusion = new_confusion(len(names))
    batches = bar(eval_batches(source, how, options.batch_size), "evaluating", -(-len(source) // options.batch_size))
    counts = accuracy(forward, model.state_dict(), batches, confusion=confusion)
    return Result(counts, class_report(confusion, names))


def main(args: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    description = (__doc__ or "").strip()
    options = cli.parse(EvaluateOptions, args, prog="python -m t2t_torch.evaluate", description=description)
    if options.json is not None:
        check_target(options.json)
    show_result(options, evaluate(options))
    return cli.OK


if __name__ == "__main__":
    cli.run_and_end(main)
