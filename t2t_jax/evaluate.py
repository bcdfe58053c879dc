"""python -m t2t_jax.evaluate --model NAME --checkpoint PATH --data DIR

Top-1 and top-5 of a checkpoint (Orbax folder, .pth, .pth.tar, .safetensors), counted exactly over every
image.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t2t_config import ModelConfig, model_config
from t2t_common import cli
from t2t_jax.checkpoint import load_metadata, load_weights
from t2t_jax.data import Preprocess, check_classes, eval_batches, open_source
from t2t_jax.metrics import count_top_k
from t2t_jax.registry import create_model
from t2t_jax.state import Arrays, model_arrays, split_model
from t2t_jax.step import Batch, make_forward

Forward = Callable[[Arrays, Any], jax.Array]


class Accuracy(NamedTuple):
    """Counts over all images, and the shares they make."""

    images: int
    top1_correct: int
    top5_correct: int

    @property
    def top1(self) -> float:
        """Share of right first guesses, in per cent."""
        return 100 * self.top1_correct / self.images

    @property
    def top5(self) -> float:
        """Share of labels among the five best guesses, in per cent."""
        return 100 * self.top5_correct / self.images


class Predictions(NamedTuple):
    """Logits (N, num_classes) and labels (N,) of all images, in the data's order."""

    logits: np.ndarray
    labels: np.ndarray


def predict(forward: Forward, arrays: Arrays, batches: Iterable[Batch]) -> Predictions:
    """Logits of every real image in `batches` (see `eval_batches`).

    Args:
        forward: from `make_forward`.
        arrays: of the model, trained and frozen.
        batches: all of one size, with `mask`.
    """
    logits, labels = [], []
    for batch in batches:
        real = np.asarray(batch["mask"])
        logits.append(np.asarray(forward(arrays, batch["image"]))[real])
        labels.append(np.asarray(batch["label"])[real])
    return Predictions(np.concatenate(logits), np.concatenate(labels))


def accuracy(forward: Forward, arrays: Arrays, batches: Iterable[Batch]) -> Accuracy:
    """Exact counts over every real image in `batches`; arguments as of `predict`."""
    total = np.zeros(3, np.int64)
    for batch in batches:
        logits, labels = predict(forward, arrays, [batch])
        total += [len(labels), count_top_k(logits, labels, 1), count_top_k(logits, labels, 5)]
    return Accuracy(*map(int, total))


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    checkpoint: Path
    """A run's folder, a checkpoint folder, or a .pth, .pth.tar or .safetensors file."""
    data: str
    """"digits" or a folder (see open_source); its val or test images are used."""
    model: str | None = None
    """Name of the model. This and what follows: None takes what the checkpoint says, else the model's own."""
    img_size: int | None = None
    """Side of the square input."""
    in_chans: Literal[1, 3] | None = None
    """Channels of the input."""
    num_classes: int | None = None
    """Classes of the head."""
    aux_head: bool | None = None
    """Token labeling's second output: logits + 0.5 * max over tokens in place of the class token's alone."""
    mean: tuple[float, ...] | None = None
    """Mean of the pixels in 0..1, one figure per channel."""
    std: tuple[float, ...] | None = None
    """Standard deviation of the pixels in 0..1, one figure per channel."""
    crop_pct: float | None = None
    """The images are resized to img_size / crop_pct, then cropped to the centre."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Of the resize."""
    batch_size: int = 64
    """Images per step."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation."""
    ema: bool = True
    """Use the moving average where the checkpoint has one."""
    json: Path | None = None
    """Also write the result to this file."""


def load_for_evaluation(options: Options) -> tuple[Any, Preprocess]:
    """The model of `options` with its weights, in evaluation mode, and how its images are prepared.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint or model, or they do not belong together.
    """
    known = load_metadata(options.checkpoint)
    name = options.model or known.get("model")
    if name is None:
        raise ValueError(f"{options.checkpoint} does not say which model it is: add --model NAME")
    known |= {field: value for field, value in vars(options).items() if value is not None}
    config: ModelConfig = model_config(name)
    how = Preprocess.of_model(config, known)
    overrides: dict[str, Any] = {"aux_head": True} if known.get("aux_head") else {}
    model = create_model(
        name,
        img_size=how.img_size,
        in_chans=how.in_chans,
        num_classes=known.get("num_classes"),
        dtype=None if options.dtype == "float32" else jnp.bfloat16,
        **overrides,
    )
    report = load_weights(model, options.checkpoint, use_ema=options.ema)
    if report.resized or report.left_out:
        print(report, file=sys.stderr)
    return model, how


def evaluate(options: Options) -> Accuracy:
    """Accuracy of the checkpoint on the validation images.

    Raises:
        FileNotFoundError, ValueError: the checkpoint or the data cannot be used; the message says why.
    """
    model, how = load_for_evaluation(options)
    source = open_source(options.data, "val")
    check_classes(source, model.num_classes)
    forward = make_forward(split_model(model)[0])
    return accuracy(forward, model_arrays(model), eval_batches(source, how, options.batch_size))


def main(args: Sequence[str]) -> int:
    """The command; its exit code."""
    description = (__doc__ or "").strip()
    options = cli.parse(Options, args, prog="python -m t2t_jax.evaluate", description=description)
    result = evaluate(options)
    print(
        f"top-1 {result.top1:.2f} % ({result.top1_correct} of {result.images})   "
        f"top-5 {result.top5:.2f} % ({result.top5_correct} of {result.images})"
    )
    if options.json is not None:
        facts = {**result._asdict(), "top1": result.top1, "top5": result.top5}
        facts |= {"checkpoint": str(options.checkpoint), "data": options.data}
        _write(options.json, json.dumps(facts, indent=1) + "\n")
    return cli.OK


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror}): choose another file") from error


if __name__ == "__main__":
    sys.exit(cli.run(main))
