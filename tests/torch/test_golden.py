"""The PyTorch models against the authors' own code, in float64: names, activations, loss, gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from t2t_torch import create_model
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
    """What our model computes on a golden file's weights and images."""

    golden: Golden
    outputs: dict[str, np.ndarray]
    logits: np.ndarray
    loss: float
    grad_x: np.ndarray
    grads: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=golden_names())
def run(request: pytest.FixtureRequest) -> Run:
    reference = golden(request.param)
    meta = reference.meta
    model = create_model(meta["variant"], img_size=meta["img_size"], num_classes=meta["num_classes"]).double()
    weights = golden_weights(meta["variant"], reference.keys_and_shapes)
    unexpected = model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
    assert set(unexpected.missing_keys) <= {"pos_embed"}
    assert not unexpected.unexpected_keys

    outputs: dict[str, np.ndarray] = {}

    def keep(name: str):
        return lambda module, args, output: outputs.__setitem__(name, output.detach().numpy())

    for name in reference.group("act"):
        model.get_submodule(name).register_forward_hook(keep(name))
    x = torch.from_numpy(golden_input(meta)).requires_grad_()
    logits = model.eval()(x)
    loss = F.cross_entropy(logits, torch.from_numpy(golden_labels(meta)), label_smoothing=0.1)
    loss.backward()
    grads = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return Run(reference, outputs, logits.detach().numpy(), loss.item(), x.grad.numpy(), grads)


def test_there_is_something_to_compare_with():
    assert len(golden_names()) >= 10


@pytest.mark.parametrize("name", golden_names())
def test_state_dict_is_the_official_one(name: str):
    reference = golden(name)
    meta = reference.meta
    model = create_model(meta["variant"], img_size=meta["img_size"], num_classes=meta["num_classes"])
    assert [(key, tuple(v.shape)) for key, v in model.state_dict().items()] == reference.keys_and_shapes


def test_logits_and_loss(run: Run):
    assert rel_f(run.logits, run.golden.arrays["logits"]) <= GATE
    assert rel_f(run.loss, run.golden.arrays["loss"]) <= GATE


def test_every_activation(run: Run):
    acts, norms = run.golden.group("act"), run.golden.group("actnorm")
    assert acts.keys() == norms.keys() == run.outputs.keys()
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
