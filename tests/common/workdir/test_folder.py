"""What a run's folder holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2t_common.workdir.folder import (
    CHECKPOINTS,
    check_beginning,
    check_workdir,
    latest_torch_file,
    note_not_recognised,
    torch_steps,
)


def test_the_latest_step_of_a_run_in_pytorch(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    assert latest_torch_file(tmp_path) == tmp_path
    assert latest_torch_file(tmp_path / "nothing") == tmp_path / "nothing"
    folder.mkdir()
    for name in ("9.pth", "10.pth", "best.pth", "11.safetensors"):
        (folder / name).touch()
    (folder / "12.pth").mkdir()
    assert torch_steps(folder) == [9, 10]
    for path in (tmp_path, folder, folder / "10.pth"):
        assert latest_torch_file(path) == folder / "10.pth"
    assert latest_torch_file(folder / "9.pth") == folder / "9.pth"


def test_a_run_of_the_other_framework_is_refused(tmp_path: Path):
    jax, torch = tmp_path / "jax", tmp_path / "torch"
    for path in (jax / "checkpoints" / "10", torch / "checkpoints"):
        path.mkdir(parents=True)
    (torch / "checkpoints" / "10.pth").touch()
    check_workdir(jax, "t2t_jax")
    check_workdir(torch, "t2t_torch")
    check_workdir(tmp_path, "t2t_torch")
    with pytest.raises(ValueError, match=r"holds a run of t2t_jax.train: choose another --workdir"):
        check_workdir(jax, "t2t_torch")
    with pytest.raises(ValueError, match=r"holds a run of t2t_torch.train"):
        check_workdir(torch, "t2t_jax")


def test_numbers_that_are_no_steps(tmp_path: Path):
    for name in ("\u00b2", "007", "\u0663", "9" * 100, "-1", ""):
        (tmp_path / f"{name}.pth").touch()
    assert torch_steps(tmp_path) == []


@pytest.mark.parametrize("name", ["016.pth", "16 (1).pth", "16.pth.bak", "step16.pth", "16", "ckpt-16"])
def test_checkpoints_that_are_not_recognised_stop_a_run_that_would_begin_anew(tmp_path: Path, name: str):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for harmless in (".16.pth", ".nfs0001", "best", "best.pth"):
        (folder / harmless).touch()
    check_beginning(tmp_path, saved_by=8)
    assert note_not_recognised(tmp_path, ["8.pth"]) is None
    (folder / name).touch()
    with pytest.raises(ValueError, match=r"has no checkpoint, but '.*16.*': restore their names"):
        check_beginning(tmp_path, saved_by=8)
    note = note_not_recognised(tmp_path, ["8.pth"])
    assert note == f"not recognised as checkpoints, and ignored: {name!r}"


@pytest.mark.parametrize("name", ["damaged-12", "damaged-12.pth", "damaged-12-1.pth"])
def test_damaged_checkpoints_that_were_set_aside_are_no_strangers(name: str, tmp_path: Path):
    (tmp_path / CHECKPOINTS / name).mkdir(parents=True)
    check_beginning(tmp_path, saved_by=8)
    assert note_not_recognised(tmp_path, []) is None


def test_a_log_that_goes_beyond_the_first_checkpoint_stops_a_run_that_would_begin_anew(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1}\n{"step": 16}\n{"st')
    check_beginning(tmp_path, saved_by=16)  # killed before it was written
    with pytest.raises(ValueError, match=r"no checkpoint, but .*metrics.jsonl goes up to step 16: put the checkpoints"):
        check_beginning(tmp_path, saved_by=15)
    assert log.read_text().startswith('{"step": 1}')
