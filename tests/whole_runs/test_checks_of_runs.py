"""What a run in either framework checks before it goes on, and what it says of itself that is likely to be wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import pytest

import t2t_jax.train
import t2t_torch.train
from t2t_common.run import loop
from t2t_common.run_page import PAGE_FILE
from t2t_common.workdir.record import Record
from t2t_config import RECIPES, Recipe
from tests.common.data.readers.test_shards import write_tree
from tests.support.small_data import write_idx_folder


@pytest.fixture(params=["t2t_jax", "t2t_torch"])
def package(request: pytest.FixtureRequest) -> ModuleType:
    return {"t2t_jax": t2t_jax, "t2t_torch": t2t_torch}[request.param].train


def on(recipe: Recipe, data: Path) -> Recipe:
    return dataclasses.replace(recipe, data=str(data))


def stop_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C before the first step."""

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train_epoch", stop)


# --- Data ---------------------------------------------------------------------------------------------------


def test_a_run_on_other_data_is_refused(package: ModuleType, recipe: Recipe, tmp_path: Path):
    """The same images elsewhere are the same data; one image that is labelled anew makes others of them."""
    data = write_idx_folder(tmp_path / "data")
    run = package.prepare(on(recipe, data))
    with package.TrainingCheckpoints(tmp_path / "run", keep=1) as checkpoints:
        checkpoints.save(run.state, run.iterator, run.metadata)
        checkpoints.wait()
        data = data.rename(tmp_path / "elsewhere")
        moved = package.prepare(on(recipe, data))
        assert loop.resume(moved, checkpoints, tmp_path) == 0
        assert moved.notes == []
        labels = data / "train-labels-idx1-ubyte"
        labels.write_bytes(labels.read_bytes()[:-1] + b"\0")
        other = package.prepare(on(recipe, data))
        with pytest.raises(
            ValueError, match=r"a run on other data \(training images: not the same, .*restore the data"
        ):
            loop.resume(other, checkpoints, tmp_path)


def test_a_run_from_before_there_were_identities_goes_on_and_says_so(
    package: ModuleType,
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Its data cannot be compared; the checkpoints that it writes from now on have them."""
    run = package.prepare(recipe)
    old = {name: fact for name, fact in run.metadata.items() if name not in ("data_identity", "ran_on")}
    if package is t2t_jax.train:
        run.state = run.state._replace(step=run.state.step + 1)
    else:
        run.state.step = 1
    with package.TrainingCheckpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(run.state, run.iterator, old)
    stop_at_once(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        package.train(recipe, tmp_path)
    said = capsys.readouterr().out.replace("\n", " ")
    assert "continuing at step 1 of 40" in said
    assert said.count("note: ") == 1
    assert "started before the identity of its data was recorded" in said
    assert run.metadata["data_identity"]["train"]["images"] == 64
    assert run.metadata["ran_on"]["processes"] == 1


# --- Warnings -----------------------------------------------------------------------------------------------


def test_own_photographs_get_a_head_of_their_own(
    package: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """An ImageNet recipe on two classes, too short to learn: what cannot be right is said, and stands on the page."""
    recipe = dataclasses.replace(
        RECIPES["imagenet_t2t_vit_14"],
        **{"model": "t2t_vit_micro", "data": str(write_tree(tmp_path / "tree")), "img_size": 16, "batch_size": 4},
        **{"mixup_group": 2, "epochs": 1, "cooldown_epochs": 0, "data_threads": 0},
    )
    assert package.prepare(dataclasses.replace(recipe, num_classes=1000)).recipe.num_classes == 1000
    stop_at_once(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        package.train(recipe, tmp_path / "run")
    said = capsys.readouterr().out.replace("\n", " ")
    assert "note: the head has 2 classes, as the data; the recipe is for data of 1000" in said
    assert "warning: a warm-up of 10 epochs leaves nothing of the run of 1 epochs" in said
    assert "warning: the moving average of the weights, which is evaluated, still contains 100 % of the initial" in said
    page = (tmp_path / "run" / PAGE_FILE).read_text()
    assert page.count("<li>a warm-up of 10 epochs") == page.count("<li>the moving average of the weights") == 1


def test_guesses_that_cannot_be_right_are_said(
    package: ModuleType,
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """A head of 40 classes for four, that learned nothing."""
    monkeypatch.setattr(loop, "train_epoch", lambda *arguments: None)
    one_epoch = {"epochs": 1, "cooldown_epochs": 0, "warmup_epochs": 0}
    package.train(dataclasses.replace(recipe, num_classes=40, **one_epoch), tmp_path)
    said = capsys.readouterr().out.replace("\n", " ")
    assert "note: the head has 40 classes, the data 4, as --num-classes says" in said
    assert "validation images are predicted as classes of which the data have no image (class " in said
    assert "is no better than chance: always class 0 would have 25.00 %" in said
    record = Record.read(tmp_path)
    assert record is not None
    assert record.warnings.keys() == {"strangers", "chance"}
