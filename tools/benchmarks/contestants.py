"""What is timed: one call of inference, or one training step, of each implementation.

Training is forward, cross-entropy, backward, AdamW and the moving average of all weights, with the model's own
dropouts. Every contestant gets the same images from N(0, 1), channels where it wants them. Frameworks are imported
inside, as some contestants live in an environment without the others.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

Task = Literal["inference", "training"]
Call = Callable[[], Any]
EMA_DECAY, LR, WEIGHT_DECAY = 0.99996, 5e-4, 0.05


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is measured, the same for every contestant."""

    model: str = "t2t_vit_14"
    batch: int = 16
    """Images of a call."""
    img_size: int = 224
    """Side of the images, in pixels."""
    official: str | None = None
    """Checkout of yitu-opensource/T2T-ViT, for the contestant of this name."""
    compiled: bool = False
    """Whether PyTorch contestants run under `torch.compile`."""


def images(setup: Setup) -> np.ndarray:
    """(B, H, W, 3), float32."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((setup.batch, setup.img_size, setup.img_size, 3), dtype=np.float32)


def labels(setup: Setup) -> np.ndarray:
    """(B,), int64."""
    return np.random.default_rng(1).integers(0, 1000, setup.batch)


# --- ours -----------------------------------------------------------------------------------------------------


def t2t_jax(setup: Setup, task: Task, *, grad_accum_steps: int = 1) -> Call:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import t2t_jax
    from t2t_jax.state import split_model
    from t2t_jax.training.optim import adamw, decay_mask
    from t2t_jax.training.step import init_state, make_forward, make_train_step

    model: Any = t2t_jax.create_model(setup.model, img_size=setup.img_size, rngs=nnx.Rngs(0))
    x = jnp.asarray(images(setup))
    if task == "inference":
        graphdef, params, buffers = split_model(nnx.view(model, deterministic=True))
        forward, arrays = make_forward(graphdef), {**params, **buffers}
        return lambda: jax.block_until_ready(forward(arrays, x))
    graphdef, params, buffers = split_model(nnx.view(model, deterministic=False))
    tx = adamw(LR, weight_decay=WEIGHT_DECAY, mask=decay_mask(params, model.no_weight_decay()))
    step = make_train_step(graphdef, tx, ema_decay=EMA_DECAY, grad_accum_steps=grad_accum_steps)
    state = init_state(params, buffers, tx, seed=0, average=True)
    batch = {"image": x, "label": jnp.asarray(labels(setup), jnp.int32)}

    def call() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return call


def t2t_jax_in_parts(setup: Setup, task: Task) -> Call:
    """A step that adds up the gradients of as many parts of its batch as evaluation computes it in."""
    from t2t_common.evaluation.cpu_chunks import available_cores, num_chunks

    parts = num_chunks(setup.batch, setup.img_size, setup.img_size, cores=available_cores())
    return t2t_jax(setup, task, grad_accum_steps=parts)


def t2t_torch(setup: Setup, task: Task) -> Call:
    import torch

    import t2t_torch
    from t2t_config import Recipe
    from t2t_torch.training.from_recipe import build_step
    from t2t_torch.training.step import make_forward

    model = t2t_torch.create_model(setup.model, img_size=setup.img_size)
    if setup.compiled:
        model.compile()
    if task == "inference":
        x = torch.from_numpy(images(setup))
        forward, arrays = make_forward(model.eval()), model.state_dict()
        return lambda: forward(arrays, x)
    sizes: dict[str, Any] = {"img_size": setup.img_size, "num_classes": 1000, "batch_size": setup.batch}
    recipe = Recipe(model=setup.model, epochs=1, ema_decay=EMA_DECAY, weight_decay=WEIGHT_DECAY, **sizes)
    state, step = build_step(recipe, model, steps_per_epoch=1000)
    batch = {"image": _torch_images(setup), "label": torch.from_numpy(labels(setup))}
    return lambda: step(state, batch)


# --- others ---------------------------------------------------------------------------------------------------


def baseline(setup: Setup, task: Task) -> Call:
    """The plain transcription, see baseline.py."""
    from t2t_config.models import model_config
    from tools.benchmarks.baseline import Baseline

    sizes = model_config(setup.model).sizes
    names = ("embed_dim", "depth", "num_heads", "mlp_ratio")
    return _plain_torch(Baseline(**{name: sizes[name] for name in names}, img_size=setup.img_size), setup, task)


def official(setup: Setup, task: Task) -> Call:
    """The authors' own code; needs timm."""
    if setup.official is None or not Path(setup.official, "models", "t2t_vit.py").is_file():
        raise FileNotFoundError(f"--official {setup.official}: no checkout of yitu-opensource/T2T-ViT")
    sys.path.insert(0, setup.official)
    import models

    return _plain_torch(getattr(models, setup.model)(img_size=setup.img_size), setup, task)


def deit_timm(setup: Setup, task: Task) -> Call:
    """timm's DeiT-S, of about the size of T2T-ViT-14; needs timm."""
    import timm

    return _plain_torch(timm.create_model("deit_small_patch16_224", img_size=setup.img_size), setup, task)


def _plain_torch(model: Any, setup: Setup, task: Task) -> Call:
    if task == "inference":
        return _torch_inference(model, setup)
    import torch
    from torch.nn.functional import cross_entropy

    x, y = _torch_images(setup), torch.from_numpy(labels(setup))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    plain = [p for name, p in trained.items() if p.ndim <= 1 or name == "cls_token"]
    decayed = [p for name, p in trained.items() if p.ndim > 1 and name != "cls_token"]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": WEIGHT_DECAY}]
    optimizer = torch.optim.AdamW(groups, lr=LR)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    forward = torch.compile(model.train()) if setup.compiled else model.train()

    def call() -> None:
        optimizer.zero_grad()
        cross_entropy(forward(x), y).backward()
        optimizer.step()
        with torch.no_grad():  # as timm's ModelEma
            for name, value in model.state_dict().items():
                average[name].copy_(average[name] * EMA_DECAY + (1.0 - EMA_DECAY) * value)

    return call


def _torch_inference(model: Any, setup: Setup) -> Call:
    import torch

    forward, x = model.eval(), _torch_images(setup)
    if setup.compiled:
        forward = torch.compile(forward)

    @torch.inference_mode()
    def call() -> None:
        forward(x)

    return call


def _torch_images(setup: Setup) -> Any:
    import torch

    return torch.from_numpy(images(setup)).permute(0, 3, 1, 2).contiguous()


# --- the limit ------------------------------------------------------------------------------------------------


def matrix_product(setup: Setup, task: Task) -> Call:
    """One float32 product in PyTorch of the shape of an MLP's first layer: the rate that all of them are held to."""
    import torch

    tokens = setup.batch * ((setup.img_size // 16) ** 2 + 1)
    a, b = torch.randn(tokens, 384), torch.randn(384, 1152)
    out = torch.empty(tokens, 1152)

    @torch.inference_mode()
    def call() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=out)

    return call


PRODUCTS = 20


def matrix_product_flops(setup: Setup) -> int:
    """FLOPs of a call of `matrix_product`."""
    return PRODUCTS * 2 * setup.batch * ((setup.img_size // 16) ** 2 + 1) * 384 * 1152


CONTESTANTS: dict[str, Callable[[Setup, Task], Call]] = {
    build.__name__: build
    for build in (t2t_jax, t2t_jax_in_parts, t2t_torch, baseline, official, deit_timm, matrix_product)
}
