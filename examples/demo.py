"""The whole project in one run: train in JAX, carry the weights into PyTorch, prove that both are one model.

    python examples/demo.py [FOLDER]

Everything is written to FOLDER (default: demo). Exit code 0: same predictions on every image and every gate holds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from t2t_config.extras import prepare_command

if __name__ == "__main__":
    prepare_command("the demo")

import numpy as np
import torch

import parity
from t2t_common.data import open_source
from t2t_common.evaluation.accuracy import predict
from t2t_common.evaluation.evaluate_command import EvaluateOptions
from t2t_common.io import cli
from t2t_common.io.terminal import make_console
from t2t_config import recipe as named_recipe
from t2t_jax.data import eval_batches
from t2t_jax.evaluate import load_for_evaluation
from t2t_jax.state import model_arrays, split_model
from t2t_jax.train import train
from t2t_jax.training.step import make_forward
from t2t_parity.pair import make_pair
from t2t_parity.weight_files import convert


def main(args: Sequence[str]) -> int:
    """The whole demo; its exit code."""
    folder = Path(args[0] if args else "demo")
    console = make_console(highlight=False)
    recipe = named_recipe("digits")
    workdir, weights = folder / "run", folder / "digits.pth"

    console.rule("1. Train in JAX")
    start = time.perf_counter()
    train(recipe, workdir)
    console.print(f"trained in {time.perf_counter() - start:.0f} s")

    console.rule("2. Carry the weights into PyTorch")
    ledger = convert(workdir, weights, recipe.model)
    console.print(f"{len(ledger)} tensors, bit for bit: {workdir} -> {weights}")

    console.rule("3. Evaluate both on the held-out images")
    model, preprocess, _ = load_for_evaluation(EvaluateOptions(checkpoint=workdir, data="digits"))
    batches = list(eval_batches(open_source("digits", "val"), preprocess, 60))
    in_jax = predict(make_forward(split_model(model)[0]), model_arrays(model), batches)
    sizes = {"img_size": preprocess.img_size, "in_chans": preprocess.in_chans, "num_classes": model.num_classes}
    torch_model, jax_model = make_pair(recipe.model, checkpoint=str(weights), **sizes)
    torch_model.eval()
    with torch.no_grad():
        logits = [torch_model(torch.from_numpy(np.moveaxis(batch["image"], -1, 1).copy())) for batch in batches]
    real = np.concatenate([batch["mask"] for batch in batches]).astype(bool)
    in_torch = torch.cat(logits).numpy()[real]
    top1_jax, top1_torch = (100 * np.mean(x.argmax(axis=1) == in_jax.labels) for x in (in_jax.logits, in_torch))
    agree = int(np.sum(in_jax.logits.argmax(axis=1) == in_torch.argmax(axis=1)))
    console.print(f"top-1 in JAX {top1_jax:.2f} %, in PyTorch {top1_torch:.2f} %")
    console.print(f"same prediction on {agree} of {len(in_torch)} images")

    console.rule("4. Prove both models equal, on the trained weights")
    images = np.moveaxis(batches[0]["image"][:4], -1, 1)
    with console.status("comparing every layer") as status:
        report = parity.check(torch_model, jax_model, images, progress=status.update)
    sys.stdout.write(report.render(width=console.width, color=console.is_terminal and console.color_system is not None))
    (folder / "parity.json").write_text(report.to_json(), encoding="utf-8")

    console.rule("Where everything lies")
    console.print(f"{workdir}  checkpoints, metrics.jsonl, report.html\n{weights}  the weights for PyTorch")
    console.print(f"{folder / 'parity.json'}  every measurement")
    return 0 if report.passed and agree == len(in_torch) else 1


if __name__ == "__main__":
    cli.run_and_end(main)
