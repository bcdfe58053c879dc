"""The training input as the loop sees it: shared by processes, ahead on the device, with images that are damaged."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from t2t_common.data import Preprocess, open_source
from t2t_common.data.examples import TRIES
from t2t_common.data.images import UnreadableImageError, decode_image
from t2t_common.data.readers.sources import EncodedSource
from t2t_config import Recipe
from t2t_jax import train as training
from t2t_jax.data import TrainIterator, eval_batches, train_iterator
from tests.support import small_data

CLASSES = 10

SMALL = dataclasses.replace(small_data.SMALL, epochs=4, cooldown_epochs=0, batch_size=6, data_threads=0)
HOW = Preprocess.of_recipe(SMALL)


class Files(EncodedSource):
    """JPEGs in memory whose gray says their index; label = index. Some are cut in half."""

    num_classes = CLASSES
    class_names = None

    def __init__(self, count: int = 20, damaged: tuple[int, ...] = ()) -> None:
        self._count, self._damaged = count, damaged

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> tuple[bytes, int]:
        data = io.BytesIO()
        Image.new("L", (64, 64), 10 * index).save(data, "JPEG")
        content = data.getvalue()
        return content[: len(content) - 40] if index in self._damaged else content, index

    def name(self, index: int) -> str:
        return f"file{index}.jpg"


def batches(source: Any, recipe: Recipe = SMALL, **options: Any) -> list[dict[str, np.ndarray]]:
    return [jax.device_get(batch) for batch in train_iterator(source, recipe, HOW, **options)]


def assert_same(ours: list[dict[str, np.ndarray]], theirs: list[dict[str, np.ndarray]]) -> None:
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], other[name])


# --- Processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
def test_processes_together_make_the_batches_of_one(count: int):
    parts = [batches(Files(), process_index=i, process_count=count) for i in range(count)]
    joined = [{k: np.concatenate([p[k] for p in step]) for k in step[0]} for step in zip(*parts, strict=True)]
    assert_same(joined, batches(Files()))


@pytest.mark.parametrize(("images", "steps"), [(20, 4), (18, 3), (13, 3)])
def test_processes_together_evaluate_every_image_once(images: int, steps: int):
    """With 13 images, the last process has none in its last batch, and yet has that batch."""
    source = Files(images)
    whole = list(eval_batches(source, HOW, 6))
    parts = [list(eval_batches(source, HOW, 6, process_index=i, process_count=3)) for i in range(3)]
    assert [len(part) for part in parts] == [steps] * 3
    assert {batch["image"].shape for part in parts for batch in part} == {(2, 8, 8, 1)}
    joined = [{k: np.concatenate([p[k] for p in step]) for k in step[0]} for step in zip(*parts, strict=True)]
    assert_same(joined, whole)
    assert sum(int(batch["mask"].sum()) for part in parts for batch in part) == images


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(ValueError, match="batch_size 6 cannot be shared evenly by 4 processes"):
        train_iterator(Files(), SMALL, HOW, process_count=4)
    with pytest.raises(ValueError, match="this one is number 2"):
        eval_batches(Files(), HOW, 6, process_index=2, process_count=2)


# --- Position -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ahead", "consumed"), [(0, 5), (1, 0), (1, 1), (3, 5), (3, 11), (2, 12)])
def test_a_saved_position_is_that_of_the_last_batch_taken(ahead: int, consumed: int):
    """However many lie ready on the device."""
    recipe = dataclasses.replace(SMALL, device_prefetch=ahead)
    whole = batches(Files(), put=jax.device_put)
    first = train_iterator(Files(), recipe, HOW, put=jax.device_put)
    for _ in range(consumed):
        next(first)
    second = train_iterator(Files(), dataclasses.replace(recipe, device_prefetch=2, data_threads=2), HOW)
    next(second)
    second.set_state(first.get_state())
    rest = list(second)
    assert len(rest) == 12 - consumed
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(rest, whole[consumed:], strict=True))
    assert len(list(first)) == 12 - consumed


def test_batches_are_put_on_the_device_ahead_and_no_farther():
    put: list[int] = []

    def note(batch: dict[str, Any]) -> dict[str, Any]:
        put.append(len(put))
        return jax.device_put(batch)

    iterator = train_iterator(Files(), dataclasses.replace(SMALL, device_prefetch=2), HOW, put=note)
    assert not put
    assert isinstance(next(iterator)["image"], jax.Array)
    assert len(put) == 3
    next(iterator)
    assert len(put) == 4


def test_worker_processes_change_nothing():
    """Neither batches, nor the count of damaged images, nor a resume from a run in threads."""
    source = Files(damaged=(3,))
    whole = train_iterator(source, SMALL, HOW)
    whole.unreadable.say = lambda text: None
    expected = list(whole)
    iterator = train_iterator(source, dataclasses.replace(SMALL, data_workers=2), HOW)
    said: list[str] = []
    iterator.unreadable.say = said.append
    iterator.set_state({"next_index": 5})
    assert_same(list(iterator), expected[5:])
    iterator.close()
    assert len(said) == 1
    assert "file3.jpg" in said[0]


# --- Damaged images -----------------------------------------------------------------------------------------


def run_out(iterator: TrainIterator) -> tuple[list[dict[str, np.ndarray]], list[str]]:
    said: list[str] = []
    iterator.unreadable.say = said.append
    return list(iterator), said


def test_a_damaged_image_is_named_once_and_replaced_by_another():
    recipe = dataclasses.replace(SMALL, augment="none", epochs=8)
    clean, _ = run_out(train_iterator(Files(), recipe, HOW))
    shown, said = run_out(train_iterator(Files(damaged=(4, 9)), recipe, HOW))
    assert [text.partition(" (image file is truncated")[0] for text in sorted(said)] == [
        f"skipped unreadable image file{i}.jpg" for i in (4, 9)
    ]
    replacements = []
    for ours, theirs in zip(shown, clean, strict=True):
        assert set(ours) == {"image", "label"}
        for row in range(6):
            label = int(ours["label"][row])
            if theirs["label"][row] in (4, 9):
                replacements.append(label)
            else:
                assert label == theirs["label"][row]
            np.testing.assert_allclose(255 * ours["image"][row], 10 * label, atol=2)  # the label is the image's own
    assert len(replacements) > 10
    assert len(set(replacements)) > 4  # another one each time
    assert not {4, 9} & set(replacements)


def test_replacements_are_the_same_in_any_threads_and_after_a_resume():
    source = Files(damaged=(4, 9, 10))
    whole, said = run_out(train_iterator(source, SMALL, HOW))
    again, said_again = run_out(train_iterator(source, dataclasses.replace(SMALL, data_threads=3), HOW))
    assert_same(again, whole)
    assert said == said_again
    resumed = train_iterator(source, SMALL, HOW)
    resumed.set_state({"next_index": 7})
    assert_same(run_out(resumed)[0], whole[7:])


def test_more_than_the_limit_is_fatal_and_all_are_named():
    recipe = dataclasses.replace(SMALL, max_corrupt_images=2)
    assert len(run_out(train_iterator(Files(damaged=(4, 9)), recipe, HOW))[0]) == 12
    with pytest.raises(ValueError, match="corrupt images: 3, --max-corrupt-images 2 allows no more") as error:
        run_out(train_iterator(Files(damaged=(4, 9, 10)), recipe, HOW))
    assert all(f"file{i}.jpg" in str(error.value) for i in (4, 9, 10))
    assert "\n" not in str(error.value)


def test_data_without_a_readable_image_end_at_once():
    recipe = dataclasses.replace(SMALL, max_corrupt_images=1000)
    with pytest.raises(UnreadableImageError, match=r"file\d+.jpg"):
        run_out(train_iterator(Files(damaged=tuple(range(20))), recipe, HOW))
    assert TRIES > 1


def test_a_file_that_cannot_be_opened_is_no_damaged_image(tmp_path: Path):
    """A disk that fails must not pass for bad data."""
    for i in range(8):
        path = tmp_path / "train" / "cat" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), i).save(path)
    source = open_source(tmp_path, "train")
    (tmp_path / "train" / "cat" / "5.png").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*5.png") as error:
        list(train_iterator(source, SMALL, HOW))
    assert not isinstance(error.value, UnreadableImageError)


def test_evaluation_never_leaves_an_image_out():
    with pytest.raises(UnreadableImageError, match=r"unreadable image file9.jpg .*replace or delete it"):
        list(eval_batches(Files(damaged=(9,)), HOW, 6))


@pytest.mark.parametrize("kept", [slice(-40), slice(30), slice(1), slice(0)])
def test_truncated_images_do_not_pass_for_whole_ones(kept: slice):
    data = Files().read(3)[0]
    decode_image(io.BytesIO(data), lambda: "whole")
    with pytest.raises(UnreadableImageError, match="unreadable image part "):
        decode_image(io.BytesIO(data[kept]), lambda: "part")


class OneLayer(nnx.Module):
    """A model that compiles in no time, (B, 16, 16, 1) -> (B, 2)."""

    def __init__(self) -> None:
        self.head = nnx.Linear(256, 2, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.head(x.reshape(len(x), -1))

    def no_weight_decay(self) -> frozenset[str]:
        return frozenset()


def test_a_run_names_its_damaged_images(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training, "build_model", lambda recipe: OneLayer())
    for split, count in (("train", 16), ("val", 4)):
        for i in range(count):
            path = tmp_path / "data" / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (16, 16), 12 * i).save(path)
    bad = tmp_path / "data" / "train" / "a" / "2.png"
    bad.write_bytes(bad.read_bytes()[:40])
    changes = {"data": str(tmp_path / "data"), "epochs": 2, "cooldown_epochs": 0, "data_threads": 0}
    training.train(dataclasses.replace(recipe, **changes), tmp_path / "run")
    out = capsys.readouterr().out
    assert out.count(f"skipped unreadable image {bad}") == 1
    assert f"corrupt images skipped: 1: unreadable image {bad}" in out
    assert '"corrupt_images": ["unreadable image' in (tmp_path / "run" / "metrics.jsonl").read_text()
