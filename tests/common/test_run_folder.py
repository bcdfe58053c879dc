"""What a run's folder holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2t_common.run_folder import check_workdir, latest_torch_file, torch_steps


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
