"""The training step: what decides it, and what does not."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from t2t_common.evaluation import cpu_chunks
from t2t_config import Recipe
from t2t_torch import create_model
from t2t_torch.training.compute_dtype import WithComputeDtype
from t2t_torch.training.from_recipe import build_model, build_step
from t2t_torch.training.optim import freeze
from t2t_torch.training.step import TrainState, make_forward
from tests.support.golden import rel_f

BASE = Recipe(
    model="t2t_vit_micro",
    img_size=16,
    in_chans=1,
    num_classes=4,
    batch_size=8,
    lr=1e-2,
    warmup_epochs=0,
    ema_decay=0.9,
)


def batch(seed: int = 0) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {"image": torch.randn(8, 1, 16, 16, generator=draws), "label": torch.arange(8, dtype=torch.int32) % 4}


def trained(steps: int = 2, model: nn.Module | None = None, **changes: Any) -> tuple[TrainState, list[float]]:
    """The state after some steps, and the loss and the gradient's norm of the last."""
    recipe = dataclasses.replace(BASE, **changes)
    state, step = build_step(recipe, model or build_model(recipe), steps_per_epoch=4)
    for number in range(steps):
        metrics = step(state, batch(number))
    return state, [float(metrics["loss"]), float(metrics["grad_norm"])]


def assert_same(ours: TrainState, theirs: TrainState) -> None:
    for mine, other in ((ours.raw, theirs.raw), (ours.best, theirs.best)):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)


def without_draws() -> nn.Module:
    return create_model("t2t_vit_micro", img_size=16, in_chans=1, num_classes=4, performer_drop_rate=0.0).double()


def in_float64(steps: int, **changes: Any) -> tuple[TrainState, list[float]]:
    recipe = dataclasses.replace(BASE, drop_path_rate=0.0, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state, step = build_step(recipe, without_draws(), steps_per_epoch=4)
    for number in range(steps):
        metrics = step(state, {**batch(number), "image": batch(number)["image"].double()})
    return state, [float(metrics["loss"]), float(metrics["grad_norm"])]


def test_a_step_is_decided_by_seed_and_step_whatever_was_drawn_before():
    mixing = {"mixup": 0.8, "cutmix": 1.0, "re_prob": 0.5, "drop_rate": 0.1}
    ours, losses = trained(**mixing)
    torch.rand(7)
    before = torch.random.get_rng_state()
    theirs, again = trained(**mixing)
    assert losses == again
    assert_same(ours, theirs)
    assert torch.equal(torch.random.get_rng_state(), before)
    model = build_model(BASE)
    torch.manual_seed(0)
    others = [trained(model=build_model(BASE), seed=seed)[1] for seed in (1, 2)]
    assert others[0] != others[1] != trained(model=model)[1]


def test_every_step_draws_anew():
    recipe = dataclasses.replace(BASE, lr=0.0, min_lr=0.0)
    state, step = build_step(recipe, build_model(recipe), steps_per_epoch=4)
    assert len({float(step(state, batch())["loss"]) for _ in range(3)}) == 3  # dropout alone differs


def test_what_is_frozen_stays_and_the_average_follows():
    model = build_model(BASE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    freeze(model, ["blocks"])
    state, _ = trained(1, model=model)
    for name, value in state.raw.items():
        stays = name.startswith("blocks.") or name == "pos_embed" or name.endswith(".w")
        assert torch.equal(value, before[name]) == stays, name
        average = 0.9 * before[name] + (1 - 0.9) * value
        torch.testing.assert_close(state.best[name], average, rtol=1e-6, atol=1e-7)


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    whole, losses = in_float64(3, clip_grad=0.1)
    parts, others = in_float64(3, clip_grad=0.1, grad_accum_steps=4)
    assert losses == pytest.approx(others, rel=1e-12)
    for name, value in whole.raw.items():
        assert rel_f(parts.raw[name].numpy(), value.numpy()) < 1e-10, name


def test_parts_draw_masks_of_their_own():
    recipe = dataclasses.replace(BASE, grad_accum_steps=2, drop_rate=0.5)
    model = build_model(recipe)
    seen: list[Tensor] = []
    state, step = build_step(recipe, model, steps_per_epoch=4)
    same = {"image": torch.ones(8, 1, 16, 16), "label": torch.zeros(8, dtype=torch.int32)}
    original = torch.nn.functional.cross_entropy

    def look(logits: Tensor, *args: Any, **options: Any) -> Tensor:
        seen.append(logits.detach())
        return original(logits, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "cross_entropy", look)
        step(state, same)
    assert len(seen) == 2
    assert not torch.equal(*seen)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rematerialised_steps_are_the_same_and_keep_less(dtype: str):
    def kept(**changes: Any) -> tuple[int, TrainState]:
        saved: list[int] = []

        def pack(x: Tensor) -> Tensor:
            saved.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            state, _ = trained(drop_rate=0.1, dtype=dtype, **changes)
        return sum(saved), state

    (plain, ours), (less, theirs) = kept(), kept(remat=True)
    assert less < 0.5 * plain
    assert_same(ours, theirs)
    assert ours.raw.keys() == build_model(BASE).state_dict().keys()


def test_bfloat16_computes_in_it_and_trains_float32():
    state, (loss, norm) = trained(dtype="bfloat16")
    _, (wanted, wanted_norm) = trained()
    assert {value.dtype for value in state.raw.values()} == {torch.float32}
    assert {p["exp_avg"].dtype for p in state.optimizer.state.values()} == {torch.float32}
    assert loss == pytest.approx(wanted, rel=2e-2)
    assert norm == pytest.approx(wanted_norm, rel=0.1)
    assert (loss, norm) != (wanted, wanted_norm)
    seen: dict[str, set[torch.dtype]] = {}
    model = build_model(BASE)
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, i, output, name=name: seen.setdefault(name, set()).add(output.dtype))
    WithComputeDtype(model, torch.bfloat16)(batch()["image"])
    assert set().union(*seen.values()) == {torch.bfloat16}


def test_evaluation_uses_the_arrays_that_it_is_given():
    state, _ = trained()
    images = np.random.RandomState(0).standard_normal((3, 16, 16, 1)).astype(np.float32)
    forward = make_forward(state.model)
    with torch.inference_mode():
        own = state.model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_array_equal(forward(state.raw, images), own)
    assert not np.array_equal(forward(state.best, images), own)
    rounded = make_forward(state.model, dtype=torch.bfloat16)(state.raw, images)
    assert rounded.dtype == np.float32
    assert 0 < rel_f(rounded, own) < 3e-2


def test_a_cpu_evaluates_few_images_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu_chunks, "PIXELS_A_CORE", 2 * 16 * 16 / torch.get_num_threads())
    model, images = without_draws().eval(), batch()["image"].double()
    with torch.inference_mode():
        whole = model(images).numpy()
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    found = make_forward(model)(model.state_dict(), images.permute(0, 2, 3, 1))
    assert seen == [2, 2, 2, 2]
    assert rel_f(found, whole) < 1e-13


def test_a_distilled_model_gets_the_mean_of_its_losses():
    model = create_model(
        "vit_deit_tiny_distilled_patch16_224", img_size=16, in_chans=1, num_classes=4, embed_dim=24, depth=1
    )
    recipe = dataclasses.replace(BASE, model="vit_deit_tiny_distilled_patch16_224", label_smoothing=0.0)
    with torch.no_grad():
        heads = model.train()(batch()["image"])
    losses = [nn.functional.cross_entropy(logits, batch()["label"].long()) for logits in heads]
    wanted = (losses[0] + losses[1]) / 2
    state, step = build_step(recipe, model, steps_per_epoch=4)
    assert float(step(state, batch())["loss"]) == pytest.approx(wanted.item(), rel=1e-6)
