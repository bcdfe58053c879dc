"""Whole runs, in seconds: what two of them have in common, what survives an interruption, what the user reads."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from t2t_common.data import open_source
from t2t_common.evaluation.accuracy import Accuracy, predict
from t2t_common.evaluation.evaluate_command import EvaluateOptions
from t2t_common.io import cli
from t2t_common.run.loop import Run, resume
from t2t_common.run_page import PAGE_FILE
from t2t_common.run_page.confusion import dense
from t2t_common.workdir.interrupt import RunInterruptedError
from t2t_common.workdir.lock import locked
from t2t_common.workdir.record import Record
from t2t_config import RECIPES, Recipe, epoch_lr
from t2t_jax import evaluate as evaluation
from t2t_jax import train as training
from t2t_jax.checkpoint import CHECKPOINTS, load_model_state, save_model
from t2t_jax.data import eval_batches
from t2t_jax.evaluate import load_for_evaluation
from t2t_jax.state import model_arrays, split_model
from t2t_jax.train import prepare, train
from t2t_jax.training.checkpoints import TrainingCheckpoints
from t2t_jax.training.reporter import Reporter, TrainingDivergedError
from t2t_jax.training.step import make_forward
from t2t_parity.weight_files import convert
from tests.support.small_data import VAL_IMAGES
from tools.reliability.run_faults.runs import TIMES

STEPS_PER_EPOCH, EPOCHS = 8, 5
AUGMENTATION = ("auto_augment", "mixup", "cutmix", "mixup_prob", "mixup_switch_prob", "mixup_mode", "re_prob")


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """Lines of the run's log, without times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Accuracy]:
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(recipe, workdir)


def test_it_learns_and_says_so(finished: tuple[Path, Accuracy], recipe: Recipe):
    workdir, result = finished
    lines = metrics(workdir)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    assert np.mean(losses[-STEPS_PER_EPOCH:]) < 0.6 < 1.2 < np.mean(losses[:STEPS_PER_EPOCH])
    assert result.images == VAL_IMAGES
    counted = [line for line in lines if "top1_correct" in line]
    assert len(counted) == recipe.total_epochs
    assert counted[-1]["top1_correct"] == result.top1_correct >= 0.9 * VAL_IMAGES
    rates = [line["lr"] for line in lines if "lr" in line][::STEPS_PER_EPOCH]
    assert rates == [epoch_lr(recipe, epoch) for epoch in range(EPOCHS)]


def test_the_page_of_a_finished_run(finished: tuple[Path, Accuracy], recipe: Recipe):
    """What classes are taken for is counted over every validation image, and the images are there."""
    workdir, result = finished
    run = Record.read(workdir)
    assert run is not None
    assert (run.status, run.last_step, len(run.starts)) == ("finished", EPOCHS * STEPS_PER_EPOCH, 1)
    assert run.confusion is not None
    assert run.confusion["step"] == EPOCHS * STEPS_PER_EPOCH
    counts = dense(run.confusion["counts"], 4)
    assert (counts.sum(), counts.trace()) == result[:2]
    assert run.samples is not None
    assert [len(image["labels"]) for image in run.samples["images"]] == [1] * recipe.batch_size
    page = (workdir / PAGE_FILE).read_text()
    assert f"{result.top1:.2f} %" in page
    assert page.count("<figure>") == 6


def interrupt(at_step: int) -> Callable[..., None]:
    original = Reporter.step

    def step(self: Reporter, step: int, *args: Any, **kwargs: Any) -> None:
        original(self, step, *args, **kwargs)
        if step == at_step:
            raise KeyboardInterrupt

    return step


@pytest.mark.parametrize(("every_steps", "saved_at"), [(None, 16), (3, 27)])
def test_an_interrupted_run_continues_bit_for_bit(
    every_steps: int | None,
    saved_at: int,
    finished: tuple[Path, Accuracy],
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Stopped in the middle of epoch 4, saved in epoch 2 or in the middle of epoch 4; other threads afterwards."""
    recipe = dataclasses.replace(recipe, checkpoint_every_steps=every_steps, keep_best=False)
    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "step", interrupt(28))
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path)
    assert [line["step"] for line in metrics(tmp_path)][-1] == 27
    assert TrainingCheckpoints(tmp_path, keep=2).latest_step == saved_at
    continue_and_compare(recipe, tmp_path, finished)


def continue_and_compare(recipe: Recipe, workdir: Path, finished: tuple[Path, Accuracy]) -> None:
    """Ends the run in `workdir`; all it leaves is what the finished one left."""
    started = Record.read(workdir)
    assert train(dataclasses.replace(recipe, data_threads=0), workdir) == finished[1]
    assert metrics(workdir) == metrics(finished[0])
    run, whole = Record.read(workdir), Record.read(finished[0])
    assert started is not None
    assert run is not None
    assert whole is not None
    assert (started.status, run.status, len(run.starts)) == ("stopped", "finished", 2)
    assert (run.samples, run.confusion) == (whole.samples, whole.confusion)
    assert (workdir / PAGE_FILE).read_text().count("continued after step") >= 1
    for ema in (True, False):
        here, there = (load_model_state(folder, use_ema=ema).arrays for folder in (workdir, finished[0]))
        chex.assert_trees_all_equal(here, there)


def test_a_run_that_gets_sigterm_saves_and_continues(
    finished: tuple[Path, Accuracy], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In the middle of epoch 3; the step that it came in is done and saved."""
    original = Reporter.step

    def step(self: Reporter, step: int, *args: Any, **kwargs: Any) -> None:
        original(self, step, *args, **kwargs)
        if step == 20:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "step", step)
        with pytest.raises(RunInterruptedError, match="by SIGTERM, saved at step 20 of 40: run the same command"):
            train(recipe, tmp_path)
    assert TrainingCheckpoints(tmp_path, keep=2, keep_best=True).latest_step == 20
    assert metrics(tmp_path)[-1]["step"] == 20
    continue_and_compare(recipe, tmp_path, finished)


def test_a_workdir_holds_one_run(finished: tuple[Path, Accuracy], recipe: Recipe):
    with locked(finished[0]), pytest.raises(ValueError, match=r"is in use by process .* choose another --workdir"):
        train(recipe, finished[0])


def test_the_best_evaluation_is_kept(finished: tuple[Path, Accuracy]):
    """With its accuracy, whether its epoch was to be saved or not."""
    best = load_model_state(finished[0] / CHECKPOINTS / "best").metadata["top1"]
    counted = [line["top1_correct"] for line in metrics(finished[0]) if "top1_correct" in line]
    assert best == 100 * max(counted) / VAL_IMAGES


SEEN: list[np.ndarray] = []


class OneLayer(nnx.Module):
    """A model that compiles in no time, (B, 16, 16, 1) -> (B, 4); SEEN gets what it is given."""

    def __init__(self) -> None:
        self.head = nnx.Linear(256, 4, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        jax.debug.callback(lambda images: SEEN.append(np.asarray(images)), x)
        return self.head(x.reshape(len(x), -1))

    def no_weight_decay(self) -> frozenset[str]:
        return frozenset()


def test_an_augmented_run_continues_bit_for_bit(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every augmentation of the official recipe is on; saved after three steps, continued by a fresh run."""
    monkeypatch.setattr(training, "build_model", lambda recipe: OneLayer())
    official = {name: getattr(RECIPES["imagenet_t2t_vit_14"], name) for name in AUGMENTATION}
    recipe = dataclasses.replace(recipe, augment="crop", **official)
    checkpoints = TrainingCheckpoints(tmp_path, keep=1)

    def losses(run: Run) -> list[float]:
        read = []
        for _ in range(3):
            run.state, step_metrics = run.train_step(run.state, next(run.iterator))
            read.append(float(step_metrics["loss"]))
        return read

    whole, fresh = prepare(recipe), prepare(dataclasses.replace(recipe, data_threads=0))
    before = losses(whole)
    checkpoints.save(whole.state, whole.iterator, whole.metadata)
    checkpoints.wait()
    assert resume(fresh, checkpoints, tmp_path) == 3
    after = losses(whole)
    assert losses(fresh) == after
    assert len({*before, *after}) == 6
    chex.assert_trees_all_equal(fresh.state._asdict(), whole.state._asdict())


def test_the_images_of_the_page_are_those_that_the_step_sees(recipe: Recipe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "build_model", lambda recipe: OneLayer())
    mixing = {"mixup": 0.8, "cutmix": 1.0, "mixup_mode": "elem", "re_prob": 0.5, "batch_size": 16}
    run = prepare(dataclasses.replace(recipe, **mixing))
    for _ in range(2):
        batch = next(run.iterator)
        sample = jax.device_get(run.sample(run.state, batch))
        SEEN.clear()
        run.state, step_metrics = run.train_step(run.state, batch)
        jax.block_until_ready(step_metrics)
        jax.effects_barrier()
        (seen,) = SEEN
        assert len(seen) == 16
        np.testing.assert_allclose(sample["image"], seen[:12], atol=1e-6)
        assert np.abs(seen[:12] - np.asarray(batch["image"])[:12]).max() > 0.1  # something was done to them
        assert sample["label"].shape == (12, 4)
        np.testing.assert_allclose(sample["label"].sum(axis=1), 1, rtol=1e-6)


def test_a_run_from_before_a_field_existed_continues_with_its_default(
    finished: tuple[Path, Accuracy], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
):
    old = TrainingCheckpoints(finished[0], keep=2).metadata
    for name in AUGMENTATION:
        del old["recipe"][name]
    monkeypatch.setattr(TrainingCheckpoints, "metadata", old)
    assert train(recipe, finished[0]) == finished[1]
    with pytest.raises(ValueError, match=r"another recipe \(mixup 0.0 -> 0.8\)"):
        train(dataclasses.replace(recipe, mixup=0.8), finished[0])


def test_a_finished_run_stays_as_it_is(finished: tuple[Path, Accuracy], recipe: Recipe):
    workdir, result = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    assert train(recipe, workdir) == result
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_another_recipe_is_refused_with_the_difference(finished: tuple[Path, Accuracy], recipe: Recipe):
    with pytest.raises(ValueError, match=r"another recipe \(lr 0.008 -> 0.1\): choose another --workdir"):
        train(dataclasses.replace(recipe, lr=0.1), finished[0])


def test_nan_stops_the_run_and_spares_the_checkpoints(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What went first is told by tests/jax/training/test_divergence.py."""
    monkeypatch.setattr(training, "explain", lambda *args, **facts: "explained")
    hot = dataclasses.replace(recipe, lr=1e30, warmup_epochs=2, warmup_lr=0.0, checkpoint_every=1, clip_grad=None)
    with pytest.raises(TrainingDivergedError, match=r"step \d+: .*lower --lr.*; explained"):
        train(hot, tmp_path)
    for array in load_model_state(tmp_path).arrays.values():
        assert np.isfinite(array).all()


def test_evaluate_counts_what_training_counted(
    finished: tuple[Path, Accuracy], recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    workdir, result = finished
    args = ["--checkpoint", str(workdir), "--data", str(recipe.data), "--json", str(tmp_path / "r.json")]
    assert cli.run(evaluation.main, [*args, "--batch-size", "7"]) == 0
    facts = json.loads((tmp_path / "r.json").read_text())
    assert (facts["images"], facts["top1_correct"], facts["top5_correct"]) == result
    assert f"({result.top1_correct} of {VAL_IMAGES})" in capsys.readouterr().out


def test_evaluate_reads_pytorch_files_and_anonymous_folders(
    finished: tuple[Path, Accuracy], recipe: Recipe, tmp_path: Path
):
    """The run as .pth, which keeps neither mean nor std, and as a folder without metadata: all said by options."""
    workdir, result = finished
    file, folder = tmp_path / "m.pth", tmp_path / "m"
    convert(workdir, file, "t2t_vit_micro")
    save_model(folder, load_model_state(workdir).arrays)
    preparation = {"model": "t2t_vit_micro", "mean": (0.4,), "std": (0.2,)}
    sizes = {"img_size": 16, "in_chans": 1, "num_classes": 4}
    for options in (
        EvaluateOptions(checkpoint=file, data=str(recipe.data), **preparation),
        EvaluateOptions(checkpoint=folder, data=str(recipe.data), **preparation, **sizes),
    ):
        assert evaluation.evaluate(options).accuracy == result
    with pytest.raises(ValueError, match="add --model NAME"):
        evaluation.evaluate(EvaluateOptions(checkpoint=folder, data=str(recipe.data)))


def test_predictions_are_in_the_datas_order(finished: tuple[Path, Accuracy], recipe: Recipe):
    options = EvaluateOptions(checkpoint=finished[0], data=str(recipe.data))
    model, how, _ = load_for_evaluation(options)
    source = open_source(options.data, "val")
    forward = make_forward(split_model(model)[0])
    predictions = predict(forward, model_arrays(model), eval_batches(source, how, 8))
    assert predictions.logits.shape == (VAL_IMAGES, 4)
    np.testing.assert_array_equal(predictions.labels, [source[i][1] for i in range(VAL_IMAGES)])
    assert (predictions.logits.argmax(1) == predictions.labels).sum() == finished[1].top1_correct


def test_a_run_starts_from_another(finished: tuple[Path, Accuracy], recipe: Recipe, tmp_path: Path):
    """At learning rate 0 the new run is the old one's average, with its accuracy; the same call again continues it."""
    still = dataclasses.replace(recipe, epochs=1, cooldown_epochs=0, warmup_lr=0.0, checkpoint_every=1)
    for _ in range(2):
        assert train(still, tmp_path, init_from=finished[0]) == finished[1]


def test_a_run_starts_at_another_size_with_parts_that_stay(finished: tuple[Path, Accuracy], recipe: Recipe):
    """As fine-tuning at 384 px and transfer: the position table is resized, what is frozen is saved, not trained."""
    larger = dataclasses.replace(recipe, img_size=32, frozen=("cls_token", "norm"))
    run = prepare(larger, init_from=finished[0])
    assert run.started_from is not None
    assert run.started_from.resized == {"pos_embed": "1x1 -> 2x2 (bicubic)"}
    assert run.state.raw["pos_embed"].shape == (1, 5, 64)
    assert {"cls_token", "norm.scale", "norm.bias", "pos_embed"} <= run.state.buffers.keys()
    before = load_model_state(finished[0]).arrays
    for name in ("cls_token", "norm.scale", "head.kernel", "blocks.1.mlp.fc2.kernel"):
        np.testing.assert_array_equal(run.state.raw[name], before[name])
        assert (name in run.state.params) == name.startswith(("head", "blocks"))
    with pytest.raises(ValueError, match="frozen: the model has no parameter 'block' nor a module"):
        prepare(dataclasses.replace(recipe, frozen=("block",)))


def test_a_run_keeps_the_names_of_the_classes(recipe: Recipe, tmp_path: Path):
    """Folders have names, IDX files have not."""
    for path in (tmp_path / split / name / "0.png" for split in ("train", "val") for name in ("cat", "dog")):
        path.parent.mkdir(parents=True)
        Image.new("RGB", (20, 10)).save(path)
    named = prepare(dataclasses.replace(recipe, data=str(tmp_path), batch_size=2))
    assert named.metadata["class_names"] == ["cat", "dog"]
    assert "class_names" not in prepare(recipe).metadata


def test_bfloat16_and_no_average_train_too(recipe: Recipe, tmp_path: Path):
    low = dataclasses.replace(recipe, dtype="bfloat16", ema_decay=None, epochs=3, cooldown_epochs=0)
    train(low, tmp_path)
    losses = [line["loss"] for line in metrics(tmp_path) if "loss" in line]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-STEPS_PER_EPOCH:]) < np.mean(losses[:STEPS_PER_EPOCH])
    assert {str(array.dtype) for array in load_model_state(tmp_path).arrays.values()} == {"float32"}
