"""A run is continued with the same recipe, classes and data; other processes and devices are told of."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from t2t_common.data import data_identity, open_source
from t2t_common.data.preprocess import Preprocess
from t2t_common.run.resume_check import LOST_DATA, check_same_run, resume, with_saved_head
from t2t_common.run.save_policy import DATA, RAN_ON, run_metadata
from t2t_common.workdir.folder import CHECKPOINTS, Damaged
from t2t_common.workdir.record import Record
from t2t_config import RECIPES, ExpectedClasses, Recipe
from tests.common.data.readers.test_shards import write_tree

ALONE = {"processes": 1, "devices": 1, "kind": "cpu"}
MESH = {"mesh": {"data": 1, "fsdp": 1}}
STEPS = {"step": 3, "last_step": 12}


def metadata(folder: Path, ran_on: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Of a run on `folder`."""
    train, val = open_source(folder, "train"), open_source(folder, "val")
    recipe = Recipe("t2t_vit_micro", data=str(folder), num_classes=2, epochs=4, cooldown_epochs=0, batch_size=2)
    recipe = dataclasses.replace(recipe, **changes)
    identity = data_identity(train, val)
    return run_metadata(
        recipe, Preprocess.of_recipe(recipe), train.class_names, data=identity, ran_on=ran_on or {**ALONE, **MESH}
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree")


def test_the_same_run_goes_on_without_a_word(tree: Path, tmp_path: Path):
    there = metadata(tree)
    moved = tree.rename(tmp_path / "elsewhere")
    assert check_same_run(there, metadata(moved), tmp_path, **STEPS) == []


def test_another_recipe_is_refused(tree: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"another recipe \(lr 0.0005 -> 1.0\): choose another --workdir"):
        check_same_run(metadata(tree), metadata(tree, lr=1.0), tmp_path, **STEPS)


def test_other_data_are_refused_with_the_difference(tree: Path, tmp_path: Path):
    there = metadata(tree)
    (tree / "train" / "cat" / "0.jpg").unlink()
    with pytest.raises(ValueError, match=r"on other data \(training images: 7 -> 6, cat 4 -> 3\): restore"):
        check_same_run(there, metadata(tree), tmp_path, **STEPS)


def test_a_class_more_is_other_data_though_the_head_has_it_too(tree: Path, tmp_path: Path):
    there = metadata(tree)
    shutil.copytree(tree / "train" / "cat", tree / "train" / "wolf")
    with pytest.raises(ValueError, match=r"\(classes new wolf; training images: 7 -> 11, 2 classes"):
        check_same_run(there, metadata(tree, num_classes=3), tmp_path, **STEPS)
    with pytest.raises(ValueError, match=r"another recipe \(lr 0.0005 -> 1.0\)"):
        check_same_run(there, metadata(tree, num_classes=3, lr=1.0), tmp_path, **STEPS)


@pytest.mark.parametrize("old", [False, True])
def test_classes_are_compared_by_name_and_order(old: bool, tree: Path, tmp_path: Path):
    """Checkpoints from before there were identities name the classes too."""
    there = metadata(tree)
    if old:
        del there[DATA]
    for split in ("train", "val"):
        (tree / split / "cat").rename(tree / split / "kitten")
    renamed = metadata(tree)
    with pytest.raises(ValueError, match=r"\(classes removed cat, new kitten"):
        check_same_run(there, renamed, tmp_path, **STEPS)
    there["class_names"] = ["kitten", "dog"]
    with pytest.raises(ValueError, match=r"the classes in another order: kitten, dog -> dog, kitten"):
        check_same_run(there, renamed, tmp_path, **STEPS)


def test_a_run_from_before_there_were_identities_goes_on_and_says_so(tree: Path, tmp_path: Path):
    here = metadata(tree)
    there = {name: value for name, value in here.items() if name not in (DATA, RAN_ON)}
    assert check_same_run(there, here, tmp_path, **STEPS) == [LOST_DATA]
    Record(last_step=12).save(tmp_path)
    assert check_same_run(there, here, tmp_path, **STEPS) == [LOST_DATA]


@pytest.mark.parametrize(("steps", "last_step"), [({"step": 15, "last_step": 12}, 0), (STEPS, 18)])
def test_a_run_of_old_on_more_images_is_refused(steps: dict[str, int], last_step: int, tree: Path, tmp_path: Path):
    """There is no step 15 of 12; and the page's record knows how many steps there were to be."""
    here = metadata(tree)
    there = {name: value for name, value in here.items() if name != DATA}
    Record(last_step=last_step).save(tmp_path)
    with pytest.raises(ValueError, match=r"on other data \(1[58] steps -> 12\)"):
        check_same_run(there, here, tmp_path, **steps)


@pytest.mark.parametrize(
    ("here", "texts"),
    [
        (ALONE | MESH, None),
        (
            {"processes": 2, "devices": 2, "kind": "cpu", "mesh": {"data": 2, "fsdp": 1}},
            ("continues with 2 processes, 2 × cpu as data=2,fsdp=1; so far it had 1 process, 1 × cpu", "cannot be"),
        ),
        (ALONE | {"mesh": {"data": 1, "fsdp": 1}, "kind": "H200"}, ("1 × H200", "cannot be bitwise identical")),
        (ALONE | MESH | {"processes": 2}, ("2 processes", "can be bitwise identical")),
        (ALONE | {"processes": 2, "devices": 2}, ("2 processes, 2 × cpu;", "draws its own dropout masks")),
    ],
)
def test_other_devices_are_told_of(here: dict[str, Any], texts: tuple[str, ...] | None, tree: Path, tmp_path: Path):
    notes = check_same_run(metadata(tree), metadata(tree, here), tmp_path, **STEPS)
    assert len(notes) == (texts is not None)
    assert all(text in notes[0] for text in texts or ())
    assert "every image still comes once" in "".join(notes) or texts is None


@pytest.mark.parametrize("damaged", [3, {"mesh": 1}, {}])
def test_damaged_facts_about_devices_harm_nothing(damaged: Any, tree: Path, tmp_path: Path):
    here = metadata(tree)
    assert len(check_same_run({**here, RAN_ON: damaged}, here, tmp_path, **STEPS)) <= 1


def test_the_head_of_a_run_of_old_is_kept(tree: Path, tmp_path: Path):
    """It had the recipe's classes whatever the data had; the same command continues it."""
    recipe = RECIPES["imagenet_t2t_vit_14"]
    (tmp_path / CHECKPOINTS).mkdir()
    config = {"num_classes": 1000, "recipe": {}}
    Record(config=config).save(tmp_path)
    assert with_saved_head(recipe, tmp_path) == recipe  # no checkpoint: it begins anew
    for name in ("8", "8.pth"):
        (tmp_path / CHECKPOINTS / name).mkdir()
        assert type(with_saved_head(recipe, tmp_path).num_classes) is int
        (tmp_path / CHECKPOINTS / name).rmdir()
    (tmp_path / CHECKPOINTS / "8").mkdir()
    Record(config={**config, DATA: {"train": {}}}).save(tmp_path)
    assert isinstance(with_saved_head(recipe, tmp_path).num_classes, ExpectedClasses)
    assert with_saved_head(recipe, tmp_path / "nothing") is recipe


@dataclasses.dataclass
class Continued:
    """A run, and its checkpoints of several steps."""

    recipe: Recipe
    metadata_here: dict[str, Any]
    there: dict[int, dict[str, Any]]
    damaged: Damaged
    steps_per_epoch: int = 3
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def latest_step(self) -> int | None:
        return max(self.there, default=None)

    @property
    def metadata(self) -> dict[str, Any]:
        return self.there.get(self.latest_step, {}) if self.there else self.metadata_here


def test_what_is_told_is_of_the_checkpoint_that_was_taken(tree: Path, tmp_path: Path):
    """The latest one may turn out to be damaged when its weights are read."""
    here, two = metadata(tree), metadata(tree, {**ALONE, **MESH, "processes": 2})
    recipe = Recipe("t2t_vit_micro", data=str(tree), num_classes=2, epochs=4, cooldown_epochs=0, batch_size=2)
    checkpoints = Continued(recipe, here, {3: two, 6: here}, Damaged(tmp_path / CHECKPOINTS))
    run = Continued(recipe, here, {}, checkpoints.damaged)

    def restore() -> int:
        del checkpoints.there[6]
        checkpoints.damaged.lines.append("6 is damaged")
        return 3

    assert resume(run, checkpoints, tmp_path, restore) == 3
    assert run.notes[0] == "6 is damaged"
    assert len(run.notes) == 2
    assert "so far it had 2 processes" in run.notes[1]
    checkpoints.there = {3: metadata(tree, lr=1.0)}
    with pytest.raises(ValueError, match="of another recipe"):
        resume(run, checkpoints, tmp_path, lambda: pytest.fail("it was restored"))
