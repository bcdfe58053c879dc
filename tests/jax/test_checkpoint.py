from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import t2t_jax
import t2t_torch
from parity import jax_to_torch
from t2t_common.io.files import ensure_writable
from t2t_jax.checkpoint import (
    init_weights,
    load_metadata,
    load_model_state,
    load_weights,
    save_model,
)
from t2t_jax.state import model_arrays
from t2t_jax.weights import replace_folder
from t2t_torch.checkpoint_file import save_checkpoint
from tests.jax.weights.test_replace_folder import fail_to_rename
from tests.support.full_disk import on_full_disk

SIZES = {"img_size": 16, "in_chans": 1, "num_classes": 3}


def micro(seed: int, **changes: object) -> nnx.Module:
    return t2t_jax.create_model("t2t_vit_micro", **{**SIZES, **changes}, rngs=nnx.Rngs(seed))


def test_model_folder_keeps_every_bit_and_the_metadata(tmp_path: Path):
    arrays = {"a.kernel": np.array([1 / 3, np.pi]), "b": np.float32([[1.5]]), "n": jnp.int32(7)}
    metadata = {"model": "t2t_vit_micro", "mean": [0.5], "nested": {"x": None}}
    save_model(tmp_path / "m", arrays, metadata)
    loaded = load_model_state(tmp_path / "m")
    assert loaded.metadata == metadata
    assert loaded.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert isinstance(loaded.arrays[name], np.ndarray)
        assert loaded.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded.arrays[name], array)


def test_saving_again_replaces_and_leaves_nothing_else(tmp_path: Path):
    for seed in range(2):
        save_model(tmp_path / "m", micro(seed))
    other = micro(5)
    load_weights(other, tmp_path / "m")
    chex.assert_trees_all_equal(model_arrays(other), model_arrays(micro(1)))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_failed_save_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_model(tmp_path / "m", {"a": np.ones(2)})

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("t2t_jax.checkpoint.ocp.save_checkpointables_async", fail)
    with pytest.raises(ValueError, match=r"cannot write .*m \(disk full\): free space"):
        save_model(tmp_path / "m", {"a": np.zeros(2)})
    np.testing.assert_array_equal(load_model_state(tmp_path / "m").arrays["a"], np.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_full_disk_is_told_of_in_one_line(tmp_path: Path):
    """Arrays that are written on when the first has failed had a traceback each."""
    before = f"""
import numpy as np
from t2t_jax.checkpoint import save_model
from t2t_jax.weights.orbax_messages import quiet_orbax
quiet = quiet_orbax()
quiet.__enter__()  # as in the commands, to the end of the process
arrays = {{f"a{{i}}": np.random.default_rng(i).random(50_000) for i in range(40)}}
path = {str(tmp_path / "m")!r}
"""
    said = on_full_disk(before, "save_model(path, arrays)")
    assert said.startswith(f"cannot write {tmp_path}/m (")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_save_that_hangs_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Orbax's own limit goes by the system's time."""
    monkeypatch.setattr("t2t_jax.checkpoint.ocp.save_checkpointables_async", lambda *args, **kwargs: Future())
    monkeypatch.setattr("t2t_jax.checkpoint.LIMIT_SECONDS", 0.05)
    with pytest.raises(ValueError, match=r"cannot write .*m \(TimeoutError\): check the disk and the system clock"):
        save_model(tmp_path / "m", {"a": np.zeros(2)})
    assert not list(tmp_path.iterdir())


def test_a_failed_exchange_in_two_steps_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replace_folder, "_exchanged", lambda one, other: False)
    save_model(tmp_path / "m", {"a": np.ones(2)})
    with monkeypatch.context() as patch:
        fail_to_rename(patch, "new")
        with pytest.raises(ValueError, match=r"cannot write .*/m \(no rename\)"):
            save_model(tmp_path / "m", {"a": np.zeros(2)})
    assert load_model_state(tmp_path / "m").arrays["a"].tolist() == [1, 1]
    save_model(tmp_path / "m", {"a": np.zeros(2)})
    assert load_model_state(tmp_path / "m").arrays["a"].tolist() == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_checkpoint_set_aside_when_the_process_died_is_found_again(tmp_path: Path):
    """Read where it is, and given its name by whoever writes there next."""
    save_model(tmp_path / "m", {"a": np.ones(2)})
    (tmp_path / "m").rename(replace_folder.set_aside(tmp_path / "m"))
    assert load_model_state(tmp_path / "m").arrays["a"].tolist() == [1, 1]
    save_model(tmp_path / "m", {"a": np.zeros(2)})
    assert load_model_state(tmp_path / "m").arrays["a"].tolist() == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="is not a checkpoint folder"):
        save_model(tmp_path, {"a": np.ones(2)})
    assert (tmp_path / "thesis.txt").read_text() == "all of it"


def test_missing_and_damaged_folders_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nowhere"):
        load_model_state(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        load_model_state(tmp_path)
    save_model(tmp_path / "m", {"a": np.random.RandomState(0).standard_normal(1000)})
    for path in (tmp_path / "m" / "model").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(ValueError, match=r"cannot read the weights in .*m "):
        load_model_state(tmp_path / "m")


def test_weights_of_another_model_are_refused(tmp_path: Path):
    save_model(tmp_path / "m", micro(0, num_classes=5))
    model = micro(1)
    with pytest.raises(ValueError, match=r"belong to another model or size: of another shape: head.bias \(5,\)"):
        load_weights(model, tmp_path / "m")
    chex.assert_trees_all_equal(model_arrays(model), model_arrays(micro(1)))


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".safetensors"])
def test_pytorch_files_load(tmp_path: Path, suffix: str):
    source, twin = micro(0), t2t_torch.create_model("t2t_vit_micro", **SIZES)
    jax_to_torch(source, twin)
    save_checkpoint(twin, tmp_path / f"m{suffix}")
    model = micro(1)
    load_weights(model, tmp_path / f"m{suffix}")
    chex.assert_trees_all_equal(model_arrays(model), model_arrays(source))


def test_unwritable_folders_are_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*file.*: choose another folder"):
        ensure_writable(tmp_path / "file" / "run")


@pytest.mark.parametrize("suffix", ["", ".pth"])
def test_training_starts_from_weights_with_other_classes(tmp_path: Path, suffix: str):
    """Everything is carried but the head, which is fresh: small, and the same for the same seed."""
    source = micro(0, num_classes=7)
    path = tmp_path / f"m{suffix}"
    if suffix:
        twin = t2t_torch.create_model("t2t_vit_micro", **{**SIZES, "num_classes": 7})
        jax_to_torch(source, twin)
        save_checkpoint(twin, path)
    else:
        save_model(path, source)
    models = micro(1), micro(1)
    for model in models:
        torch.rand(1)  # the global generator must not matter
        init_weights(model, path)
    first, second = map(model_arrays, models)
    chex.assert_trees_all_equal(first, second)
    for name, array in model_arrays(source).items():
        if name.startswith("head."):
            assert first[name].shape[-1] == 3
        else:
            np.testing.assert_array_equal(first[name], array)
    assert 0 < np.abs(first["head.kernel"]).max() < 0.2


def other_metadata(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


def test_arrays_far_larger_than_their_files_are_refused(tmp_path: Path):
    """What is not in a file is read as zeros."""
    save_model(tmp_path / "m", {"a": np.zeros((1 << 13, 1 << 12), np.float32)})
    assert sum(path.stat().st_size for path in (tmp_path / "m").rglob("*") if path.is_file()) < 1 << 20
    with pytest.raises(ValueError, match=r"cannot read the weights in .*m \(it unpacks to 134,217,728 bytes from"):
        load_model_state(tmp_path / "m")


def test_metadata_that_are_no_dictionary(tmp_path: Path):
    save_model(tmp_path / "m", {"a": np.zeros(2)}, {"x": 1})
    other_metadata(tmp_path / "m", "_CHECKPOINT_METADATA", '{"x": 1}', "[[1]]")
    (tmp_path / "m" / "sha256.json").unlink()  # which would tell at once
    for read in (load_model_state, load_metadata):
        with pytest.raises(ValueError, match=r"cannot read the .* in .*m \("):
            read(tmp_path / "m")


@pytest.mark.parametrize("name", ["\u00b2", "007", "9" * 100])
def test_folders_called_by_no_step(tmp_path: Path, name: str):
    save_model(tmp_path / "checkpoints" / "5", {"a": np.zeros(2)})
    (tmp_path / "checkpoints" / "5").rename(tmp_path / "checkpoints" / name)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        load_model_state(tmp_path)


def test_a_link_to_itself_is_nothing(tmp_path: Path):
    (tmp_path / "m").symlink_to("m")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*m: check the path"):
        load_model_state(tmp_path / "m")
