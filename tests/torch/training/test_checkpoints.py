"""A run's checkpoints: which are kept, what they hold, and what is left when writing fails."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from t2t_common.data.iterator import BatchIterator
from t2t_common.workdir.checkpoints import TOP1
from t2t_torch import load_checkpoint, read_state_dict
from t2t_torch.training.checkpoints import TrainingCheckpoints
from t2t_torch.training.from_recipe import build_model, build_step
from t2t_torch.training.step import TrainState
from tests.support.full_disk import on_full_disk
from tests.torch.training.test_step import BASE, batch
from tests.torch.weights.test_safe_unpickle import with_pickle

METADATA = {"model": "t2t_vit_micro", "img_size": 16, "in_chans": 1, "num_classes": 4}


def numbers() -> Any:
    """An iterator of which only the position matters."""
    return BatchIterator(lambda position: iter([]), None)  # type: ignore[arg-type]


def new(step: int = 0, **changes: Any) -> TrainState:
    """A state; after `step` > 0 steps it has an optimiser's memory."""
    recipe = dataclasses.replace(BASE, **changes)
    state, train_step = build_step(recipe, build_model(recipe), steps_per_epoch=4)
    if step:
        train_step(state, batch())
    state.step = step
    return state


def files(workdir: Path) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").iterdir()}


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd", "ema_decay": None}, {"backbone_lr_scale": 0.1}])
def test_a_state_comes_back_and_goes_on_bit_for_bit(changes: dict[str, Any], tmp_path: Path):
    recipe = dataclasses.replace(BASE, **changes)
    runs = [build_step(recipe, build_model(recipe), steps_per_epoch=2) for _ in range(2)]
    (ours, step), (theirs, their_step) = runs
    iterator, checkpoints = numbers(), TrainingCheckpoints(tmp_path, keep=1)
    for number in range(3):
        step(ours, batch(number))
    iterator.set_state({"next_index": 3})
    checkpoints.save(ours, iterator, METADATA)
    iterator.set_state({"next_index": 0})
    checkpoints.restore(theirs, iterator)
    assert theirs.step == iterator.get_state()["next_index"] == 3
    for number in range(3, 5):
        assert step(ours, batch(number)) == their_step(theirs, batch(number))
    for mine, other in ((ours.raw, theirs.raw), (ours.best, theirs.best)):
        assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert ours.scheduler.get_last_lr() == theirs.scheduler.get_last_lr()


def test_the_latest_and_the_best_are_kept(tmp_path: Path):
    checkpoints = TrainingCheckpoints(tmp_path, keep=2, keep_best=True)
    assert checkpoints.latest_step is None
    assert checkpoints.metadata == {}
    for step, top1 in ((1, 50.0), (2, 70.0), (3, None), (4, 70.0), (5, 60.0)):
        assert checkpoints.is_best(top1 or 0) == (step in (1, 2))
        checkpoints.save(new(step), numbers(), {**METADATA, **({} if top1 is None else {TOP1: top1})})
    assert files(tmp_path) == {"2.pth", "4.pth", "5.pth", "best.pth"}
    assert (tmp_path / "checkpoints" / "best.pth").readlink() == Path("2.pth")
    again = TrainingCheckpoints(tmp_path, keep=2, keep_best=True)
    assert (again.latest_step, again.metadata[TOP1]) == (5, 60.0)
    assert not again.is_best(70.0)
    again.save(new(6), numbers(), {TOP1: 80.0})
    assert files(tmp_path) == {"5.pth", "6.pth", "best.pth"}
    assert (tmp_path / "checkpoints" / "best.pth").resolve().name == "6.pth"


def test_weights_are_read_from_the_files_and_from_the_folder(tmp_path: Path):
    state = new(7)
    TrainingCheckpoints(tmp_path, keep=2).save(state, numbers(), METADATA)
    model = build_model(BASE)
    report = load_checkpoint(model, tmp_path)
    assert report.is_ema
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "7.pth"):
        for use_ema, wanted in ((True, state.best), (False, state.raw)):
            found = read_state_dict(path, use_ema=use_ema)
            assert all(torch.equal(found[name], value) for name, value in wanted.items())
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint file at .*empty: if JAX wrote this folder, .* convert"):
        read_state_dict(tmp_path / "empty")


def test_what_a_killed_run_left_is_swept_away(tmp_path: Path):
    TrainingCheckpoints(tmp_path, keep=2).save(new(1), numbers(), METADATA)
    half = tmp_path / "checkpoints" / ".2.pth.abc"
    half.mkdir()
    (half / "2.pth").write_bytes(b"half")
    (tmp_path / "checkpoints" / ".best.pth").symlink_to("1.pth")
    assert TrainingCheckpoints(tmp_path, keep=2).latest_step == 1
    assert files(tmp_path) == {"1.pth"}


def damage(path: Path, member: str = "data/0") -> None:
    """Flips one bit in a member of the zip file."""
    with zipfile.ZipFile(path) as archive:
        (content,) = (archive.read(name) for name in archive.namelist() if name.endswith(f"/{member}"))
    whole = bytearray(path.read_bytes())
    whole[whole.index(content) + len(content) // 2] ^= 1
    path.write_bytes(whole)


def test_a_damaged_checkpoint_is_named(tmp_path: Path):
    """With none before it nothing is set aside, or the next call would begin anew."""
    checkpoints = TrainingCheckpoints(tmp_path, keep=2)
    checkpoints.save(new(1), numbers(), METADATA)
    path = tmp_path / "checkpoints" / "1.pth"
    path.write_bytes(path.read_bytes()[:5000])
    for _ in range(2):
        checkpoints = TrainingCheckpoints(tmp_path, keep=2)
        with pytest.raises(ValueError, match=r"cannot read .*1.pth, or any before it \(.*choose another --workdir"):
            _ = checkpoints.metadata
    assert files(tmp_path) == {"1.pth"}


@pytest.mark.parametrize("reads_metadata", [True, False])
@pytest.mark.parametrize("member", ["data/0", "data.pkl", "sha256.json"])
def test_a_run_falls_back_to_the_checkpoint_before(reads_metadata: bool, member: str, tmp_path: Path):
    checkpoints, states = TrainingCheckpoints(tmp_path, keep=3), {step: new(step) for step in (1, 2, 3)}
    for step, state in states.items():
        checkpoints.save(state, numbers(), METADATA | {"of": step})
    damage(tmp_path / "checkpoints" / "3.pth", member)
    damage(tmp_path / "checkpoints" / "2.pth")
    checkpoints = TrainingCheckpoints(tmp_path, keep=3, keep_best=True)
    assert not reads_metadata or checkpoints.metadata["of"] in (1, 2, 3)  # its tensors are not read yet
    state = new()
    checkpoints.restore(state, numbers())
    assert state.step == checkpoints.metadata["of"] == checkpoints.latest_step == 1
    assert all(torch.equal(states[1].raw[name], value) for name, value in state.raw.items())
    assert files(tmp_path) == {"1.pth", "damaged-2.pth", "damaged-3.pth"}
    assert sorted(checkpoints.damaged.lines) == checkpoints.damaged.lines[::-1]
    for line, step in zip(checkpoints.damaged.lines, (3, 2), strict=True):
        assert line.startswith(f"checkpoint {tmp_path}/checkpoints/{step}.pth is damaged (")
        assert line.endswith(f"): renamed to damaged-{step}.pth, the run uses the previous one")
        assert "\n" not in line
    checkpoints.save(states[3], numbers(), METADATA | {"of": 3})
    assert TrainingCheckpoints(tmp_path, keep=3).metadata["of"] == 3


def test_a_sound_checkpoint_that_does_not_fit_stays(tmp_path: Path):
    checkpoints = TrainingCheckpoints(tmp_path, keep=2)
    checkpoints.save(new(1), numbers(), METADATA)
    checkpoints.save(new(2), numbers(), METADATA)
    with pytest.raises(ValueError, match=r"cannot continue from .*2.pth \(.*choose another --workdir"):
        checkpoints.restore(new(num_classes=7), numbers())
    assert files(tmp_path) == {"1.pth", "2.pth"}


def test_checkpoints_of_earlier_versions_go_on(tmp_path: Path):
    """Without digests; a bit that changed is found by the zip's CRC-32."""
    checkpoints, states = TrainingCheckpoints(tmp_path, keep=2), [new(1), new(2)]
    for state in states:
        checkpoints.save(state, numbers(), METADATA)
    for step in (1, 2):
        path = tmp_path / "checkpoints" / f"{step}.pth"
        torch.save(torch.load(path), path)
    state = new()
    TrainingCheckpoints(tmp_path, keep=2).restore(state, numbers())
    assert state.step == 2
    damage(tmp_path / "checkpoints" / "2.pth")
    checkpoints = TrainingCheckpoints(tmp_path, keep=2)
    checkpoints.restore(state, numbers())
    assert state.step == 1
    assert "CRC-32" in checkpoints.damaged.lines[0]


def test_what_is_saved_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoints, states = TrainingCheckpoints(tmp_path, keep=1), [new(1), new(2)]
    checkpoints.save(states[0], numbers(), METADATA)
    write = Path.write_bytes

    def bad_disk(path: Path, content: Any) -> int:
        changed = bytearray(content)
        changed[changed.index(states[1].raw["head.bias"].numpy().tobytes())] ^= 1
        return write(path, changed)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", bad_disk)
        with pytest.raises(ValueError, match=r"cannot write .*2.pth \(read back, it differs from what was written: "):
            checkpoints.save(states[1], numbers(), METADATA)
    assert files(tmp_path) == {"1.pth"}


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path):
    setup = f"""
from tests.torch.training.test_checkpoints import METADATA, TrainingCheckpoints, new, numbers
checkpoints, states = TrainingCheckpoints({str(tmp_path)!r}, keep=1), [new(1), new(2)]
checkpoints.save(states[0], numbers(), METADATA)"""
    said = on_full_disk(setup, "checkpoints.save(states[1], numbers(), METADATA)")
    assert f"cannot write {tmp_path}/checkpoints/2.pth" in said
    assert files(tmp_path) == {"1.pth"}
    TrainingCheckpoints(tmp_path, keep=1).restore(new(), numbers())


def test_metadata_are_read_as_carefully_as_weights(tmp_path: Path):
    """`keep_best` reads them of every checkpoint."""
    with TrainingCheckpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(new(1), numbers(), METADATA)
    call = b"cbuiltins\nbytearray\n" + b"J" + (400_000_000).to_bytes(4, "little") + b"\x85R0"
    with_pickle(tmp_path / "checkpoints" / "1.pth", lambda content: content[:2] + call + content[2:])
    with pytest.raises(ValueError, match=r"cannot read .*1.pth"):
        _ = TrainingCheckpoints(tmp_path, keep=2, keep_best=True).metadata


@pytest.mark.parametrize("top1", ["90", [1], None])
def test_an_accuracy_that_is_no_number_is_none(tmp_path: Path, top1: Any):
    for _ in range(2):
        with TrainingCheckpoints(tmp_path, keep=2, keep_best=True) as checkpoints:
            checkpoints.save(new(1), numbers(), {**METADATA, TOP1: top1})
    assert files(tmp_path) == {"1.pth"}
