"""The JAX models against the authors' own code, in float64: activations, loss, gradients, after conversion."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity import torch_to_jax
from parity.recording.transformations import jax_calls
from t2t_jax import create_model
from t2t_jax.models.transformer_block import get_sinusoid_encoding
from tests.support.golden import (
    Golden,
    changed_golden,
    ends,
    golden,
    golden_input,
    golden_labels,
    golden_names,
    golden_weights,
    rel_f,
    slice_activation,
    summary,
)

GATE = 1e-12


@dataclasses.dataclass(frozen=True)
class Run:
    """What our model computes on a golden file's weights and images; gradients in PyTorch's names and layouts."""

    golden: Golden
    outputs: dict[str, np.ndarray]
    loss: float
    grad_x: np.ndarray
    grads: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=golden_names())
def run(request: pytest.FixtureRequest) -> Run:
    reference = golden(request.param)
    meta = reference.meta
    shapes = dict(reference.keys_and_shapes)
    weights = golden_weights(meta["variant"], reference.keys_and_shapes)
    weights.setdefault("pos_embed", get_sinusoid_encoding(*shapes["pos_embed"][1:]).astype(np.float64))
    # Abstract: every tensor comes from the formula.
    sizes = {"img_size": meta["img_size"], "num_classes": meta["num_classes"]}
    model = nnx.eval_shape(lambda: create_model(meta["variant"], **sizes))
    names = reference.group("act").keys()

    def loss_fn(params: nnx.State, image_NxHxWxC: jax.Array, rest: nnx.State) -> tuple[jax.Array, Any]:
        calls = jax_calls(nnx.merge(graphdef, params, rest), (image_NxHxWxC,))
        logits = calls["", 0].outputs[0]
        target = jax.nn.one_hot(golden_labels(meta), meta["num_classes"], dtype=logits.dtype)
        target = 0.9 * target + 0.1 / meta["num_classes"]
        loss = -(target * jax.nn.log_softmax(logits)).sum(axis=-1).mean()
        return loss, {"logits": logits} | {name: calls[name, 0].outputs[0] for name in names}

    with jax.enable_x64(True):
        ledger = torch_to_jax({key: torch.from_numpy(value) for key, value in weights.items()}, model)
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        # XLA's optimiser takes longer than it saves on two images, unless there is a large convolution.
        options = {"xla_backend_optimization_level": 0} if meta["variant"].startswith("t2t_") else None
        step = jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True), compiler_options=options)
        (loss, outputs), (grads, grad_x) = step(params, jnp.asarray(golden_input(meta).transpose(0, 2, 3, 1)), rest)
        entries = {entry.jax: entry for entry in ledger}
        named = {".".join(map(str, path)): np.asarray(grad[...]) for path, grad in nnx.to_flat_state(grads)}
    return Run(
        reference,
        {name: np.asarray(output) for name, output in outputs.items()},
        float(loss),
        np.asarray(grad_x).transpose(0, 3, 1, 2),
        {entries[name].torch: entries[name].to_torch(grad) for name, grad in named.items()},
    )


def test_logits_and_loss(run: Run):
    assert run.outputs["logits"].dtype == np.float64
    assert rel_f(run.outputs["logits"], run.golden.arrays["logits"]) <= GATE
    assert rel_f(run.loss, run.golden.arrays["loss"]) <= GATE


def test_every_activation(run: Run):
    acts, norms = run.golden.group("act"), run.golden.group("actnorm")
    assert acts.keys() == norms.keys() == run.outputs.keys() - {"logits"}
    errors = {f"act/{name}": rel_f(slice_activation(run.outputs[name]), acts[name]) for name in acts}
    errors |= {f"actnorm/{name}": rel_f(summary(run.outputs[name]), norms[name]) for name in norms}
    assert not {name: error for name, error in errors.items() if not error <= GATE}


def test_every_gradient(run: Run):
    expected = run.golden.group("gradnorm")
    assert expected.keys() == run.grads.keys()
    global_norm = math.sqrt(sum(figures[0] ** 2 for figures in expected.values()))
    errors = {}
    for name, figures in expected.items():
        difference = np.linalg.norm(ends(run.grads[name]) - figures)
        # A gradient that is zero by structure is all rounding error: it is measured against all gradients.
        scale = np.linalg.norm(figures) if figures[0] > 1e-9 * global_norm else global_norm
        errors[name] = difference / scale
    assert not {name: error for name, error in errors.items() if not error <= GATE}


def test_gradient_of_the_images(run: Run):
    if "gradx" in run.golden.arrays:
        assert rel_f(run.grad_x[0, :, ::37, ::41], run.golden.arrays["gradx"]) <= GATE
    assert np.isfinite(run.grad_x).all()
    assert np.abs(run.grad_x).max() > 0


JUDGES: dict[str, Callable[[Run], None]] = {
    "logits": test_logits_and_loss,
    "act": test_every_activation,
    "actnorm": test_every_activation,
    "gradnorm": test_every_gradient,
    "gradx": test_gradient_of_the_images,
    "loss": test_logits_and_loss,
}
"""Arrays of a golden file by their kind, and the test above that has to notice when a number in one is another."""


def test_changed_numbers_in_the_file_are_noticed(run: Run, tmp_path: Path):
    last = {key.partition("/")[0]: key for key in run.golden.arrays if key != "state_dict_keys"}  # of each kind
    assert {"logits", "loss", "gradnorm"} <= last.keys() <= JUDGES.keys()
    loss = last.pop("loss")
    for changes in (last, {"loss": loss}):  # the loss by itself, as the test judges the logits first
        changed = dataclasses.replace(run, golden=changed_golden(run.golden, changes.values(), tmp_path))
        for kind in changes:
            with pytest.raises(AssertionError):
                JUDGES[kind](changed)
