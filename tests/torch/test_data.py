"""Batches by DataLoader: the examples of t2t_common, whoever prepares them."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2t_common.data import EvalExamples, TrainExamples, open_source
from t2t_common.data.preprocess import Preprocess
from t2t_config import RECIPES, Recipe
from t2t_torch.data import eval_batches, train_iterator

RECIPE = dataclasses.replace(RECIPES["digits"], batch_size=400, epochs=2, cooldown_epochs=0, data_threads=0)
HOW = Preprocess.of_recipe(RECIPE)


def test_batches_hold_the_examples_in_their_order():
    source = open_source("digits", "train")
    examples = TrainExamples(source, RECIPE, HOW)
    batches = list(train_iterator(source, RECIPE, HOW))
    assert len(batches) == 2 * 3
    for step in (0, 4):
        assert batches[step].keys() == {"image", "label"}
        for row in (0, 17, 399):
            example = examples[400 * step + row]
            np.testing.assert_array_equal(batches[step]["image"][row].numpy(), example["image"])
            assert batches[step]["label"][row] == example["label"]


@pytest.mark.parametrize("changes", [{"data_threads": 3}, {"data_workers": 2}])
def test_threads_workers_and_a_resume_change_nothing(changes: dict[str, int]):
    source = open_source("digits", "train")
    whole = list(train_iterator(source, RECIPE, HOW))
    first = train_iterator(source, dataclasses.replace(RECIPE, device_prefetch=2), HOW, put=lambda batch: batch)
    for _ in range(2):
        next(first)
    second = train_iterator(source, dataclasses.replace(RECIPE, **changes), HOW)
    second.set_state(first.get_state())
    rest = list(second)
    assert len(rest) == 4
    for ours, theirs in zip(rest, whole[2:], strict=True):
        assert torch.equal(ours["image"], theirs["image"])


def test_an_interrupt_leaves_workers_alive():
    """Ctrl-C reaches them too, and the run is to end after a step, with all batches until then."""
    batches = train_iterator(open_source("digits", "train"), dataclasses.replace(RECIPE, data_workers=1), HOW)
    before = multiprocessing.active_children()
    next(batches)
    (worker,) = set(multiprocessing.active_children()).difference(before)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == 5


def test_processes_together_make_the_batches_of_one():
    source = open_source("digits", "train")
    whole = next(train_iterator(source, RECIPE, HOW))
    parts = [next(train_iterator(source, RECIPE, HOW, process_index=i, process_count=2)) for i in range(2)]
    assert torch.equal(torch.cat([part["image"] for part in parts]), whole["image"])
    with pytest.raises(ValueError, match="batch_size 400 cannot be shared evenly by 3 processes"):
        train_iterator(source, RECIPE, HOW, process_count=3)


@pytest.mark.parametrize(("workers", "threads"), [(0, 1), (0, 2), (1, 2)])
def test_images_that_cannot_be_read_are_named_in_one_line(workers: int, threads: int, tmp_path: Path):
    for split, count in (("train", 8), ("val", 4)):
        for i in range(count):
            path = tmp_path / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (16, 16), 12 * i).save(path)
    for path in (tmp_path / "train" / "a" / "2.png", tmp_path / "val" / "b" / "3.png"):
        path.write_bytes(path.read_bytes()[:40])
    recipe = Recipe("t2t_vit_micro", img_size=16, batch_size=8, epochs=2, cooldown_epochs=0, max_corrupt_images=1)
    recipe = dataclasses.replace(recipe, data_threads=threads, data_workers=workers)
    how, source = Preprocess.of_recipe(recipe), open_source(tmp_path, "train")
    iterator, said = train_iterator(source, recipe, how), []
    iterator.unreadable.say = said.append
    assert len(list(iterator)) == 2
    assert len(said) == 1
    assert "2.png" in said[0]
    with pytest.raises(ValueError, match=r"corrupt images: 1, --max-corrupt-images 0"):
        list(train_iterator(source, dataclasses.replace(recipe, max_corrupt_images=0), how))
    with pytest.raises(ValueError, match=r"unreadable image .*3.png.*replace or delete it") as error:
        list(eval_batches(open_source(tmp_path, "val"), how, 2, threads=threads, workers=workers))
    assert "\n" not in str(error.value)


def test_evaluation_shows_every_image_once_and_marks_the_filling():
    source = open_source("digits", "val")
    batches = list(eval_batches(source, HOW, 100, threads=2))
    assert [int(batch["mask"].sum()) for batch in batches] == [100, 100, 100, 60]
    assert {tuple(batch["image"].shape) for batch in batches} == {(100, 32, 32, 1)}
    labels = torch.cat([batch["label"][batch["mask"]] for batch in batches])
    assert labels.tolist() == [source[i][1] for i in range(len(source))]
    np.testing.assert_array_equal(batches[2]["image"][5], EvalExamples(source, HOW, 100)[205]["image"])
