"""`python -m parity train`: what it trains, what it shows, what it returns."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jax
import pytest
import torch
from rich.console import Console

from parity.carry.convert import Ledger
from parity.measure.gates import Row
from parity.report.findings import Trajectory
from parity.side_by_side.trajectory import TrainingProof
from t2t_config import epoch_lr
from t2t_parity.train_command import Train, images, recipe, run_train, training
from tests.support.parity.pairs import micro


def run(options: Train) -> tuple[int, str]:
    stream = io.StringIO()
    return run_train(options, Console(file=stream, width=100)), stream.getvalue()


def test_our_smallest_model(tmp_path: Path):
    file = tmp_path / "figures.json"
    code, text = run(Train("t2t_vit_micro", steps=2, img_size=16, num_classes=3, json=file))
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()[3:5]] == ["1", "2"]
    assert text.splitlines()[-2] == "EQUAL"
    payload = json.loads(file.read_text())
    assert payload["passed"] is True
    assert payload["settings"]["steps"] == 2
    assert max(payload["trajectory"]["distance64"]) <= 1e-10
    assert "blocks.0.attn.qkv.weight" in {row["name"] for row in payload["rows"]}


def test_by_cifars_recipe(tmp_path: Path):
    """SGD, two rates, frozen parts and no average."""
    file = tmp_path / "figures.json"
    options = Train("t2t_vit_micro", recipe="cifar10_t2t_vit_14", steps=3, img_size=16, num_classes=3, json=file)
    code, text = run(options)
    assert code == 0
    assert "3 SGD steps" in text
    payload = json.loads(file.read_text())
    assert max(payload["trajectory"]["distance64"]) <= 1e-12
    trained = {row["name"] for row in payload["rows"] if row["kind"] == "step"}
    assert {"head.bias", "blocks.0.norm1.weight"} <= trained
    assert not {"cls_token", "norm.weight", "norm.bias"} & trained
    assert {row["kind"] for row in payload["rows"]} == {"decay mask", "step", "schedule"}


def failing(*args: Any, **options: Any) -> TrainingProof:
    row = Row("", "decay mask", "train", "float64", 1.0, 0.0, note="cls_token decays only in JAX")
    return TrainingProof((row,), Trajectory((1.0,), (1.0,), (1e-12,), (1e-6,), (1e-6,)), Ledger(()))


def test_a_difference_is_exit_code_1(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("parity.side_by_side.trajectory.train_side_by_side", failing)
    code, text = run(Train("t2t_vit_micro", steps=1, img_size=16))
    assert code == 1
    assert "decay mask: FAILED, worst 1.0e+00, gate 0.0e+00: cls_token decays only in JAX" in text
    assert text.splitlines()[-1] == "DIFFERENT"


@pytest.mark.parametrize("field", ["steps", "batch", "num_classes", "lr", "img_size"])
def test_figures_that_make_no_sense(field: str):
    with pytest.raises(ValueError, match=f"--{field.replace('_', '-')} must be positive, got 0"):
        Train("t2t_vit_micro", **{field: 0})


def test_a_folder_that_is_missing(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="create the folder"):
        run(Train("t2t_vit_micro", json=tmp_path / "missing" / "x.json"))
    with pytest.raises(ValueError, match="unknown model"):
        run(Train("t2t_vit_micr"))


def test_the_recipe_is_the_models_own_drawn_together():
    ours = recipe(Train("t2t_vit_7", steps=20, lr=2e-3))
    assert (ours.weight_decay, ours.lr, ours.epochs, ours.warmup_epochs) == (0.03, 2e-3, 20, 5)
    rates = [epoch_lr(ours, step) for step in range(20)]
    assert rates[0] == pytest.approx(2e-4)
    assert max(rates) <= 2e-3
    assert len(set(rates)) == 20


def test_another_recipe_is_drawn_together_without_a_warm_up_of_its_own():
    ours = recipe(Train("t2t_vit_7", recipe="cifar10_t2t_vit_14", steps=20))
    assert (ours.model, ours.optimizer, ours.epochs, ours.warmup_epochs) == ("t2t_vit_7", "sgd", 20, 0)
    assert epoch_lr(ours, 0) == 0.05
    with pytest.raises(ValueError, match="unknown recipe 'cifar'"):
        recipe(Train("t2t_vit_7", recipe="cifar"))


def test_both_sides_follow_the_recipe():
    ours = recipe(Train("t2t_vit_micro", steps=8, weight_decay=0.5))
    torch_model, jax_model = micro()
    made = training(ours, jax_model)
    optimizer, scheduler = made.torch(torch_model)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.5]
    with jax.enable_x64(True):
        for step in range(8):
            assert optimizer.param_groups[0]["lr"] == epoch_lr(ours, step) == float(made.jax_rate(step))
            optimizer.step()
            scheduler.step()


def test_images_depend_on_seed_and_step():
    first, again = (images(Train("t2t_vit_micro"), (3, 4, 4), 0) for _ in range(2))
    assert (first[0][0] == again[0][0]).all()
    assert first[0][0].shape == (2, 3, 4, 4)
    for other in (images(Train("t2t_vit_micro", seed=1), (3, 4, 4), 0), images(Train("t2t_vit_micro"), (3, 4, 4), 1)):
        assert not (first[0][0] == other[0][0]).any()
    assert torch.from_numpy(first[1]).max() < 10
