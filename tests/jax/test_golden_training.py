"""Twenty AdamW steps of the authors' code, in float64, by the very step of `t2t_jax.train` and by its PyTorch twin."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

import t2t_jax
import t2t_torch
from parity import jax_to_torch, torch_to_jax
from t2t_jax.state import load_arrays, split_model
from t2t_jax.training.optim import adamw, decay_mask
from t2t_jax.training.step import init_state, make_train_step
from t2t_torch.training.optim import Ema, param_groups
from tests.support.golden import Golden, changed_golden, golden, golden_weights, rel_f

State = dict[str, np.ndarray]

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module")
def reference() -> Golden:
    return golden("train20_t2t_vit_7")


def start(reference: Golden) -> torch.nn.Module:
    """The golden run's model before the first step, without dropout."""
    meta = reference.meta
    sizes = {"img_size": meta["img_size"], "num_classes": meta["num_classes"], "performer_drop_rate": 0.0}
    model = t2t_torch.create_model(meta["variant"], **sizes).double()
    shapes = [(key, tuple(value.shape)) for key, value in model.state_dict().items()]
    weights = golden_weights(meta["variant"], shapes)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()}, strict=False)
    return model.train()


def batches(reference: Golden) -> list[tuple[np.ndarray, np.ndarray]]:
    meta, draws = reference.meta, np.random.RandomState(7)
    shape = (meta["batch"], 3, meta["img_size"], meta["img_size"])
    return [
        (draws.standard_normal(shape), draws.randint(0, meta["num_classes"], meta["batch"]))
        for _ in range(meta["steps"])
    ]


def check(reference: Golden, folder: Path, losses: list[float], initial: State, final: State, ema: State) -> None:
    """What a framework computed is what the golden file says, and would not be if one number in it were another."""
    compare(reference, losses, initial, final, ema)
    for key in ("losses", next(reversed(reference.arrays))):
        with pytest.raises(AssertionError):
            compare(changed_golden(reference, [key], folder), losses, initial, final, ema)


def compare(reference: Golden, losses: list[float], initial: State, final: State, ema: State) -> None:
    assert max(abs(np.array(losses) / reference.arrays["losses"] - 1)) <= 1e-12
    expected = reference.group("param")
    assert final.keys() == expected.keys()
    for key, figures in expected.items():
        moved, flat = np.linalg.norm(final[key] - initial[key]), final[key].ravel()
        ours = [moved, np.linalg.norm(flat), flat[0], flat[-1], np.linalg.norm(ema[key]), ema[key].ravel()[0]]
        assert rel_f(ours, figures) <= 1e-10, key


def numpy_state(model: torch.nn.Module) -> State:
    return {key: value.detach().numpy().copy() for key, value in model.state_dict().items()}


def test_pytorch(reference: Golden, tmp_path: Path):
    model, meta = start(reference), reference.meta
    initial, losses = numpy_state(model), []
    optimizer = torch.optim.AdamW(param_groups(model, meta["weight_decay"]), lr=meta["lr"])
    ema = Ema(model, meta["ema_decay"])
    for x, y in batches(reference):
        loss = F.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y), label_smoothing=meta["label_smoothing"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model)
        losses.append(loss.item())
    averaged = {key: value.numpy() for key, value in ema.state.items()}
    check(reference, tmp_path, losses, initial, numpy_state(model), averaged)


def test_jax(reference: Golden, tmp_path: Path):
    twin, meta = start(reference), reference.meta
    initial = numpy_state(twin)
    sizes = {"img_size": meta["img_size"], "num_classes": meta["num_classes"], "performer_drop_rate": 0.0}
    model = t2t_jax.create_model(meta["variant"], **sizes, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    torch_to_jax(twin, model)
    model.train()
    graphdef, params, buffers = split_model(model)
    tx = adamw(meta["lr"], weight_decay=meta["weight_decay"], mask=decay_mask(params, model.no_weight_decay()))
    state = init_state(params, buffers, tx, seed=0, average=True)
    step = make_train_step(graphdef, tx, label_smoothing=meta["label_smoothing"], ema_decay=meta["ema_decay"])
    losses = []
    for x, y in batches(reference):
        state, metrics = step(state, {"image": x.transpose(0, 2, 3, 1), "label": y.astype(np.int32)})
        assert metrics["loss"].dtype == jnp.float64
        losses.append(float(metrics["loss"]))

    def in_torch(arrays: dict[str, jax.Array]) -> State:
        load_arrays(model, arrays)
        jax_to_torch(model, twin)
        return numpy_state(twin)

    check(reference, tmp_path, losses, initial, in_torch(state.raw), in_torch(state.ema))
