from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import chex
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2t_common.workdir.checkpoints import TOP1, UNFINISHED
from t2t_config import Recipe
from t2t_jax import checkpoint
from t2t_jax.checkpoint import CHECKPOINTS, load_model_state, save_model
from t2t_jax.parallel.processes import LostProcessError
from t2t_jax.train import prepare
from t2t_jax.training.checkpoints import TrainingCheckpoints
from t2t_jax.training.step import TrainState
from t2t_jax.weights import replace_folder
from t2t_jax.weights.digests import FILE, write_digests
from tests.support.full_disk import on_full_disk


def state_at(step: int) -> TrainState:
    """A state whose every array is of that step, large enough to fill a disk of 4096 bytes."""
    array = jnp.asarray(np.random.RandomState(step).standard_normal(5000), jnp.float32)
    arrays = {"a": array}
    return TrainState(arrays, {}, {"mu": array + 1}, {"a": array + 2}, jnp.int32(step), jnp.zeros(2, jnp.uint32))


def numbers() -> grain.DatasetIterator:
    """An iterator over 0, 1, 2, ..."""
    return iter(grain.MapDataset.range(100).to_iter_dataset())


def save_all(checkpoints: TrainingCheckpoints, top1: Mapping[int, float | None]) -> None:
    for step, value in top1.items():
        checkpoints.save(state_at(step), numbers(), {} if value is None else {TOP1: value})
    checkpoints.wait()


def names(workdir: Path) -> list[str]:
    """What is in the folder of checkpoints."""
    return sorted(path.name for path in (workdir / CHECKPOINTS).iterdir())


def test_a_checkpoint_set_aside_when_the_process_died_is_found_again(tmp_path: Path):
    step = tmp_path / "run" / CHECKPOINTS / "7"
    save_model(step, {"a": np.ones(2)})
    step.rename(replace_folder.set_aside(step))
    assert TrainingCheckpoints(tmp_path / "run", keep=1).latest_step == 7


def test_training_checkpoints_restore_everything(tmp_path: Path, recipe: Recipe):
    """Two steps, save, two more; a fresh run restored from the save does the same two."""
    run = prepare(recipe)

    def advance(run: object, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            run.state, metrics = run.train_step(run.state, next(run.iterator))
            losses.append(float(metrics["loss"]))
        return losses

    advance(run, 2)
    checkpoints = TrainingCheckpoints(tmp_path, keep=1)
    assert checkpoints.latest_step is None
    assert checkpoints.metadata == {}
    checkpoints.save(run.state, run.iterator, run.metadata)
    expected = advance(run, 2)
    checkpoints.wait()
    again = prepare(recipe)
    checkpoints = TrainingCheckpoints(tmp_path, keep=1)
    assert checkpoints.latest_step == 2
    assert checkpoints.metadata == again.metadata
    again.state = checkpoints.restore(again.state, again.iterator)
    assert advance(again, 2) == expected
    chex.assert_trees_all_equal(again.state, run.state)
    checkpoints.save(again.state, again.iterator, again.metadata)
    checkpoints.wait()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]  # keep=1
    ema, raw = (load_model_state(tmp_path, use_ema=ema).arrays for ema in (True, False))
    chex.assert_trees_all_equal(ema, {name: np.asarray(a) for name, a in run.state.ema.items()})
    chex.assert_trees_all_equal(raw, {name: np.asarray(a) for name, a in run.state.raw.items()})
    assert not np.array_equal(ema["head.kernel"], raw["head.kernel"])


def test_a_full_disk_spares_the_checkpoints_before(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch):
    run = prepare(recipe)
    checkpoints = TrainingCheckpoints(tmp_path, keep=1)
    checkpoints.save(run.state, run.iterator, run.metadata)
    checkpoints.wait()
    later = run.state._replace(step=run.state.step + 1)

    def fail(folder: Path, *args: object, **kwargs: object) -> None:
        (folder / "model").mkdir(parents=True)
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("t2t_jax.checkpoint.ocp.save_checkpointables_async", fail)
        with pytest.raises(ValueError, match=r"cannot write .*checkpoints/1 \(no space left\): free space"):
            checkpoints.save(later, run.iterator, run.metadata)
    checkpoints.wait()
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["0"]
    checkpoints.save(later, run.iterator, run.metadata)
    checkpoints.wait()
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["1"]


def test_who_lost_another_process_does_not_wait_for_a_checkpoint_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It will never be whole: what writes it waits for the other."""
    other_comes, waits = threading.Event(), threading.Event()

    def finish() -> None:
        waits.set()
        other_comes.wait()

    monkeypatch.setattr("t2t_jax.training.checkpoints.start_writing", lambda *args, **how: finish)
    try:
        checkpoints = TrainingCheckpoints(tmp_path, keep=1)
        checkpoints.save(state_at(1), numbers(), {})
        assert waits.wait(60)
        checkpoints.__exit__(LostProcessError, LostProcessError("gone"), None)
        assert not other_comes.is_set()
    finally:
        other_comes.set()


def test_what_a_killed_run_left_is_swept_away(tmp_path: Path):
    leftover = tmp_path / CHECKPOINTS / f"{UNFINISHED}xyz"
    (leftover / "new" / "model").mkdir(parents=True)
    assert TrainingCheckpoints(tmp_path, keep=1).latest_step is None
    assert not leftover.exists()


def flip(folder: Path, item: str) -> None:
    """One bit in the largest file of an item."""
    path = max((p for p in (folder / item).rglob("*") if p.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(folder: Path) -> None:
    """Every file in it."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])


def saved(workdir: Path, *steps: int) -> TrainingCheckpoints:
    """The checkpoints of a run that saved at these steps, and whose iterator is at as many numbers."""
    iterator = numbers()
    with TrainingCheckpoints(workdir, keep=len(steps)) as checkpoints:
        for step in steps:
            next(iterator)
            checkpoints.save(state_at(step), iterator, {"of": step})
    return TrainingCheckpoints(workdir, keep=len(steps), keep_best=True)


def test_a_damaged_checkpoint_is_named_on_resume(tmp_path: Path):
    """With none before it nothing is set aside, or the next call would begin anew."""
    saved(tmp_path, 1)
    cut_short(tmp_path / CHECKPOINTS / "1" / "train")
    for _ in range(2):
        checkpoints = TrainingCheckpoints(tmp_path, keep=2)
        with pytest.raises(ValueError, match=r"cannot read .*checkpoints/1, or any before it \(train/.*: choose"):
            checkpoints.restore(state_at(0), numbers())
    assert names(tmp_path) == ["1"]


@pytest.mark.parametrize("item", ["model", "train", "ema", "data"])
def test_a_run_falls_back_to_the_checkpoint_before(item: str, tmp_path: Path):
    saved(tmp_path, 1, 2, 3)
    flip(tmp_path / CHECKPOINTS / "3", item)
    flip(tmp_path / CHECKPOINTS / "2", "model")
    checkpoints, iterator = TrainingCheckpoints(tmp_path, keep=3, keep_best=True), numbers()
    assert checkpoints.metadata["of"] in (1, 3)  # the other items are not read yet
    chex.assert_trees_all_equal(checkpoints.restore(state_at(0), iterator), state_at(1))
    assert next(iterator) == 1
    assert checkpoints.latest_step == checkpoints.metadata["of"] == 1
    assert names(tmp_path) == ["1", "damaged-2", "damaged-3"]
    for line, step in zip(sorted(checkpoints.damaged.lines), (2, 3), strict=True):
        assert line.startswith(f"checkpoint {tmp_path}/{CHECKPOINTS}/{step} is damaged (")
        assert line.endswith(f"): renamed to damaged-{step}, the run uses the previous one")
        assert "\n" not in line
    save_all(checkpoints, {3: None})
    assert TrainingCheckpoints(tmp_path, keep=3).metadata == {}


def test_a_sound_checkpoint_that_does_not_fit_stays(tmp_path: Path):
    checkpoints = saved(tmp_path, 1, 2)
    other = state_at(0)._replace(opt_state={"nu": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"cannot continue from .*checkpoints/2 \(.*choose another --workdir"):
        checkpoints.restore(other, numbers())
    assert names(tmp_path) == ["1", "2"]


def test_checkpoints_of_earlier_versions_go_on(tmp_path: Path):
    """Without digests; what cannot be read is passed over all the same."""
    saved(tmp_path, 1, 2)
    for step in ("1", "2"):
        (tmp_path / CHECKPOINTS / step / "sha256.json").unlink()
    chex.assert_trees_all_equal(TrainingCheckpoints(tmp_path, keep=2).restore(state_at(0), numbers()), state_at(2))
    assert load_model_state(tmp_path).verified == ""
    cut_short(tmp_path / CHECKPOINTS / "2" / "train")
    checkpoints = TrainingCheckpoints(tmp_path, keep=2)
    chex.assert_trees_all_equal(checkpoints.restore(state_at(0), numbers()), state_at(1))
    assert names(tmp_path) == ["1", "damaged-2"]


def test_what_is_saved_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Orbax once lost what it had written, and said nothing."""
    saved(tmp_path, 1)
    wait = checkpoint.ocp.save_checkpointables_async

    def lossy(folder: Path, *args: Any, **kwargs: Any) -> Any:
        written = wait(folder, *args, **kwargs)
        written.result()
        flip(Path(folder), "model")
        return written

    monkeypatch.setattr("t2t_jax.checkpoint.ocp.save_checkpointables_async", lossy)
    checkpoints = TrainingCheckpoints(tmp_path, keep=2)
    checkpoints.save(state_at(2), numbers(), {})
    with pytest.raises(ValueError, match=r"cannot write .*checkpoints/2 \(read back, model is not what was written"):
        checkpoints.wait()
    assert names(tmp_path) == ["1"]


def test_another_number_of_processes_finds_its_place_in_the_data(tmp_path: Path, recipe: Recipe):
    """Each of two processes writes the same position; Grain reads that of as many processes alone."""
    run = prepare(recipe)
    for _ in range(3):
        next(run.iterator)
    checkpoints = TrainingCheckpoints(tmp_path, keep=1)
    checkpoints.save(run.state, run.iterator, run.metadata)
    checkpoints.wait()
    expected = next(run.iterator)
    folder = tmp_path / CHECKPOINTS / "0"
    tensors = json.loads((folder / FILE).read_text())["tensors"]
    own = folder / "data" / "process_0-of-1.json"
    for name in ("process_0-of-2.json", "process_1-of-2.json"):
        shutil.copy(own, own.with_name(name))
    own.unlink()
    write_digests(folder, tensors)
    again = prepare(recipe)
    checkpoints.restore(again.state, again.iterator)
    chex.assert_trees_all_equal(next(again.iterator), expected)
    own.with_name("process_1-of-2.json").write_text(json.dumps({"next_index": 4}))
    write_digests(folder, tensors)
    with pytest.raises(ValueError, match=r"cannot read .*checkpoints/0, .*positions in the data are missing"):
        checkpoints.restore(again.state, again.iterator)


def test_a_run_without_average_has_none(tmp_path: Path, recipe: Recipe):
    run = prepare(dataclasses.replace(recipe, ema_decay=None))
    checkpoints = TrainingCheckpoints(tmp_path, keep=1)
    checkpoints.save(run.state, run.iterator, run.metadata)
    checkpoints.wait()
    run.state = checkpoints.restore(run.state, run.iterator)
    assert run.state.ema is None
    assert load_model_state(tmp_path).arrays.keys() == run.state.raw.keys()


# --- In the background --------------------------------------------------------------------------------------


def in_background(monkeypatch: pytest.MonkeyPatch, before: Callable[[], object]) -> None:
    """Has the background do `before` ahead of each write."""
    original = checkpoint.start_writing

    def start_writing(*args: Any, **kwargs: Any) -> Callable[[], None]:
        finish = original(*args, **kwargs)

        def late() -> None:
            before()
            finish()

        return late

    monkeypatch.setattr("t2t_jax.training.checkpoints.start_writing", start_writing)


def test_training_goes_on_while_one_moment_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The memory of the state is taken and the iterator moves on before the writer comes to its end."""
    go = threading.Event()
    in_background(monkeypatch, go.wait)
    state, iterator = state_at(7), numbers()
    expected = jax.tree.map(np.array, state)
    assert [next(iterator) for _ in range(3)] == [0, 1, 2]
    next_step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    with TrainingCheckpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state, iterator, {"of": "step 7"})
        for _ in range(3):
            state = jax.block_until_ready(next_step(state))
            next(iterator)
        assert checkpoints.latest_step is None
        go.set()
        checkpoints.wait()
        assert checkpoints.latest_step == 7
        assert checkpoints.metadata == {"of": "step 7"}
        fresh = numbers()
        restored = checkpoints.restore(state, fresh)
    chex.assert_trees_all_equal(jax.tree.map(np.array, restored), expected)
    assert next(fresh) == 3


def no_space() -> None:
    raise ValueError("no space")


@pytest.mark.parametrize("notice", ["wait", "next save", "end"])
def test_what_fails_in_the_background_is_told(notice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with TrainingCheckpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state_at(1), numbers(), {})
    monkeypatch.setattr("t2t_jax.training.checkpoints.start_writing", lambda *args, **kwargs: no_space)
    checkpoints = TrainingCheckpoints(tmp_path, keep=1)
    checkpoints.save(state_at(2), numbers(), {})
    tell: dict[str, Callable[[], None]] = {
        "wait": checkpoints.wait,
        "next save": lambda: checkpoints.save(state_at(3), numbers(), {}),
        "end": lambda: checkpoints.__exit__(None, None, None),
    }
    with pytest.raises(ValueError, match="no space"):
        tell[notice]()
    with TrainingCheckpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.latest_step == 1
    assert names(tmp_path) == ["1"]


def test_another_error_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("t2t_jax.training.checkpoints.start_writing", lambda *args, **kwargs: no_space)
    checkpoints = TrainingCheckpoints(tmp_path, keep=1)
    checkpoints.save(state_at(1), numbers(), {})
    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError, match="diverged"), checkpoints:
        raise RuntimeError("diverged")
    assert "no space" in caplog.text


def test_a_disk_that_fills_up_in_the_background_spares_the_checkpoint_before(tmp_path: Path):
    before = f"""
from t2t_jax.weights.orbax_messages import quiet_orbax
from tests.jax.training.test_checkpoints import TrainingCheckpoints, numbers, state_at
quiet = quiet_orbax()
quiet.__enter__()  # as in the commands, to the end of the process
checkpoints = TrainingCheckpoints({str(tmp_path)!r}, keep=1)
checkpoints.save(state_at(1), numbers(), {{}})
checkpoints.wait()
"""
    said = on_full_disk(before, "checkpoints.save(state_at(2), numbers(), {})\ncheckpoints.wait()")
    assert f"cannot write {tmp_path}/checkpoints/2 (" in said
    assert said.strip().endswith("): free space, or choose another folder")
    assert said.count("\n") == 1
    assert names(tmp_path) == ["1"]
    restored = TrainingCheckpoints(tmp_path, keep=1).restore(state_at(0), numbers())
    chex.assert_trees_all_equal(restored, state_at(1))
