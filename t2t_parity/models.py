"""The models of this project for `python -m parity check NAME` and `power NAME` (entry point of `parity.models`).

This module is what `parity.commands.installed.Models` describes.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from parity.commands.options import natural, positive
from parity.pair import Pair
from t2t_config import ALIASES, MODELS
from t2t_config.extras import check_command


def names() -> Collection[str]:
    """Return the names of all models, as `t2t_torch.list_models` does, and their aliases."""
    return {*MODELS, *ALIASES}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add weights, sizes, and what the images are drawn from."""
    group = parser.add_argument_group("options of the models of t2t-vit")
    group.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE|DIR",
        help="Weights: .pth, .pth.tar, .safetensors or an Orbax folder. (default: random weights under which every "
        "error shows)",
    )
    group.add_argument(
        "--fresh",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="Use the initial weights of a new model instead.",
    )
    group.add_argument(
        "--img-size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="Image size in pixels: one number for a square, or height and width. (default: that of the model or "
        "checkpoint)",
    )
    group.add_argument(
        "--in-chans",
        type=positive,
        metavar="INT",
        help="Number of input channels. (default: that of the model or checkpoint)",
    )
    group.add_argument(
        "--num-classes",
        type=natural,
        metavar="INT",
        help="Number of classes of the head. (default: that of the model or checkpoint)",
    )
    group.add_argument("--batch", type=positive, metavar="INT", default=2, help="Number of images in the batch.")
    group.add_argument(
        "--scan-blocks",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="Stack the blocks of the JAX model and run them in a scan; they are compared as one module.",
    )
    group.add_argument("--seed", type=natural, metavar="INT", default=0, help="Seed for the random weights and images.")


def pair(name: str, options: argparse.Namespace) -> Pair:
    """Create model `name` in both frameworks, and random images.

    Raises:
        ValueError, FileNotFoundError: See `t2t_parity.pair.make_pair`; or the options contradict each other.
    """
    sizes = _sizes(options)
    if options.fresh and options.checkpoint is not None:
        raise ValueError("--fresh takes new weights and --checkpoint those of a file: give one of them")
    check_command("t2t_parity")
    import numpy as np

    from t2t_parity.pair import SCANNED, make_pair
    from t2t_parity.weight_files import saved_arguments

    if options.checkpoint is not None:
        sizes = {**saved_arguments(options.checkpoint), **sizes}
    torch_model, jax_model = make_pair(
        name,
        seed=None if options.fresh else options.seed,
        checkpoint=None if options.checkpoint is None else str(options.checkpoint),
        scan_blocks=options.scan_blocks,
        **sizes,
    )
    shape = (options.batch, torch_model.in_chans, *torch_model.img_size)
    images = np.random.RandomState(options.seed).standard_normal(shape)
    further: dict[str, Any] = {"rules": SCANNED if options.scan_blocks else None, "same_trainable": True}
    return Pair(torch_model, jax_model, images, further)


def _sizes(options: argparse.Namespace) -> dict[str, Any]:
    sizes = {"in_chans": options.in_chans, "num_classes": options.num_classes, "img_size": options.img_size}
    if options.img_size is not None:
        if len(options.img_size) > 2:
            raise ValueError(f"--img-size takes one number or two, got {len(options.img_size)}")
        sizes["img_size"] = options.img_size[0] if len(options.img_size) == 1 else tuple(options.img_size)
    return {key: value for key, value in sizes.items() if value is not None}
