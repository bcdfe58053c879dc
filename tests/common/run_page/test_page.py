"""The page: what it says of every kind of run, and that a browser shows it well, on a desk, on a phone, in the dark."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2t_common.run_page.page import PAGE_FILE, duration, render, steps_per_epoch, write_page
from t2t_common.workdir.lock import locked
from t2t_common.workdir.record import Record
from t2t_common.workdir.writers import read_lines
from t2t_config import Recipe
from tests.support.pages.recorded_runs import EPOCHS, STEPS, lines, record, resumed, written
from tests.support.parity.browser import DARK, LIGHT, Browser

PHONE, DESK = 390, 1280
DIVERGED = "step 91: loss is nan: lower --lr; first not finite: the output of blocks.0.mlp"


def page(of: Record, steps: int = STEPS, **figures: bool) -> str:
    return render(of, lines(steps, **figures), name="birds_run", status=of.status)


RUNS: dict[str, Callable[[], str]] = {
    "begun": lambda: page(record(status="running", samples=None, confusion=None), 0),
    "running": lambda: page(record(status="running", step=40), 70, mfu=True),
    "resumed": lambda: page(dataclasses.replace(resumed(), status="running")),
    "stopped": lambda: page(record(status="stopped", message="stopped by SIGTERM, saved at step 70 of 160"), 70),
    "diverged": lambda: page(record(status="diverged", message=DIVERGED), 90),
    "finished": lambda: page(record()),
    "many classes": lambda: page(record(classes=1000)),
    "of old": lambda: render(Record(), lines(), name="birds_run", status=""),
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return Browser(tmp_path_factory.mktemp("chromium"))


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(("width", "scheme"), [(PHONE, LIGHT), (DESK, DARK)])
def test_nothing_sticks_out_and_everything_is_legible(browser: Browser, name: str, width: int, scheme: int):
    found = browser.measure(RUNS[name](), width, scheme)
    assert found["width"] <= width
    assert found["outside"] == []
    assert found["faint"] == []
    assert (np.mean(found["background"]) < 64) == (scheme == DARK)


@pytest.mark.parametrize("name", RUNS)
def test_the_browser_has_nothing_to_complain_about(browser: Browser, name: str):
    assert browser.console(RUNS[name]()) == []


def test_the_page_runs_no_script_and_fetches_nothing(browser: Browser):
    text = RUNS["finished"]()
    assert "http" not in text.replace("http-equiv", "")
    for smuggled in ("<script>1</script>", '<img src="https://example.org/x.png">'):
        complaints = browser.console(text.replace("<main>", f"<main>{smuggled}"))
        assert any("Content Security Policy" in line for line in complaints)


def test_every_curve_is_there_with_a_name(browser: Browser):
    found = browser.measure(RUNS["running"](), DESK)
    words = ("loss", "Accuracy", "Learning rate", "gradient", "Throughput", "Waiting", "MFU")
    assert len(found["pictures"]) == len(words)
    for word, label in zip(words, found["pictures"], strict=True):
        assert word in label
    assert browser.measure(RUNS["begun"](), DESK)["pictures"] == []


@pytest.mark.parametrize("name", RUNS)
def test_only_a_run_that_goes_on_loads_itself_again(name: str):
    assert ('http-equiv="refresh"' in RUNS[name]()) == (name in ("begun", "running", "resumed"))


@pytest.mark.parametrize(
    ("name", "title", "said"),
    [
        ("begun", "birds_run: running", ["epoch 0 of 8, step 0 of 160", "No figures yet: the first come after 50"]),
        ("running", "birds_run: running", ["epoch 3.5 of 8, step 70 of 160", "about 0 s left", "after epoch 2."]),
        ("resumed", "birds_run: running", ["dashed where the run was continued", "continued after step 70", "1 h 31"]),
        ("stopped", "birds_run: stopped", ["stopped by SIGTERM, saved at step 70 of 160", "1 min 5 s"]),
        ("diverged", "birds_run: diverged", [DIVERGED, "epoch 4.5 of 8, step 90 of 160"]),
        ("finished", "birds_run: finished", ["8 epochs, 160 steps", "best 82.50 % after epoch 8", "4 × TPU v5e"]),
        ("many classes", "birds_run: finished", ["Most frequent mistakes", "Worst classes", "goldfish"]),
        ("of old", "birds_run", ["82.50 %", "Training loss"]),
    ],
)  # fmt: skip
def test_the_page_says_how_the_run_is(browser: Browser, name: str, title: str, said: list[str]):
    found = browser.measure(RUNS[name](), DESK)
    assert found["title"] == title
    for text in said:
        assert text in found["text"], text


def test_the_recipe_is_there_and_what_differs_stands_in_sight(browser: Browser):
    text = browser.measure(RUNS["finished"](), DESK)["text"]
    assert "mixup\n0.8" in text
    assert "weight_decay" not in text  # folded
    folded = RUNS["finished"]()
    assert all(f"<dt>{field.name}</dt>" in folded for field in dataclasses.fields(Recipe))
    assert "python -m t2t_jax.train birds" in text
    assert "jax\n0.10.2" in text


def test_images_and_their_classes_are_there(browser: Browser):
    text = RUNS["finished"]()
    assert text.count("data:image/png;base64,") == 4
    seen = browser.measure(text, DESK)["text"]
    assert "wren 70%\nrobin <b> 30%" in seen
    assert "house sparrow\n" in seen  # without its synonyms


def test_the_table_of_mistakes_has_every_class_and_its_accuracy(browser: Browser):
    found = browser.measure(RUNS["finished"](), PHONE)
    table = "Confusion matrix: images of a row's class by first guess (column)"
    assert found["captions"] == [table, "Most frequent mistakes"]
    for share in ("90.0 %", "50.0 %", "100.0 %"):
        assert share in found["text"]


def test_marks_of_a_resumed_run_stand_at_its_step():
    assert 'class="resumed" x1="43.75%"' in RUNS["resumed"]()  # 70 of 160
    assert 'class="resumed"' not in RUNS["finished"]()


def test_names_cannot_break_the_page(browser: Browser):
    evil = '</style><script>document.title = "broken"</script>&"<b>'
    config = {**record().config, "class_names": [evil] * 3, "model": evil}
    run = record(status="failed", message=evil, config=config, environment={evil: evil})
    found = browser.measure(render(run, lines(), name=evil, status=evil), PHONE)
    assert found["title"] == f"{evil}: {evil}"
    assert found["text"].count(evil) >= 5


def test_names_that_cannot_be_printed_are_escaped(tmp_path: Path):
    """A lone surrogate would keep the page from being written, a bell from being read."""
    names = ["caf\udce9", "\x1b[31mred\x07", "two\nlines"]
    of = record()
    of.config["class_names"] = names
    text = write_page(written(tmp_path, of, lines())).read_text(encoding="utf-8")
    assert all(shown in text for shown in ("caf\\udce9", "\\x1b[31mred\\x07", "two\\nlines"))
    assert not {"\x1b", "\x07"} & set(text)


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_picture_holds_something(browser: Browser, tmp_path: Path, width: int):
    browser.screenshot(RUNS["finished"](), tmp_path / "page.png", width, 1500)
    picture = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))[:, :width]
    assert len({tuple(colour) for colour in picture.reshape(-1, 3)[::7]}) > 50


def test_epochs_are_known_from_the_recipe_or_from_the_lines():
    assert steps_per_epoch(record(), []) == STEPS / EPOCHS
    assert steps_per_epoch(Record(), lines()) == STEPS / EPOCHS
    assert steps_per_epoch(Record(), lines(7)) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (605, "10 min 5 s"), (3660, "1 h 1 min"), (200000, "2 d 7 h")],
)
def test_durations_are_in_two_units(seconds: float, text: str):
    assert duration(seconds) == text


# --- From a workdir -----------------------------------------------------------------------------------------


def test_a_run_whose_process_is_gone_is_called_killed(tmp_path: Path):
    workdir = written(tmp_path / "run", record(status="running"), lines(70))
    with locked(workdir):
        assert "<title>run: running</title>" in write_page(workdir).read_text()
    text = write_page(workdir).read_text()
    assert "<title>run: killed</title>" in text
    assert "The same command continues the run" in text
    assert "refresh" not in text
    kept = Record.read(workdir)
    assert kept is not None
    assert kept.status == "running"  # only its own process writes there


def test_a_workdir_of_old_has_a_page_too(tmp_path: Path):
    path = write_page(written(tmp_path / "run", None, lines()))
    assert path == tmp_path / "run" / PAGE_FILE
    assert "<title>run</title>" in path.read_text()


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path: Path):
    workdir = written(tmp_path, record(), lines(20))
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 25, "lo')
    assert read_lines(workdir / "metrics.jsonl") == lines(20)


def test_a_folder_without_a_run_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no run in .*: give the folder that holds metrics.jsonl"):
        write_page(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        {"step": 9, "loss": "x"},
        {"step": 9, "top1": None},
        {"step": 10**400, "loss": 1},
    ],
)
def test_figures_that_make_no_sense_are_named(tmp_path: Path, line: dict[str, Any]):
    workdir = written(tmp_path, record(), [*lines(20), line])
    with pytest.raises(ValueError, match=r"cannot make report.html of metrics.jsonl and run.json in .* damaged"):
        write_page(workdir)
    assert not (workdir / PAGE_FILE).exists()


def test_a_confusion_of_more_classes_than_can_be_shown_is_left_out(tmp_path: Path):
    found = record(confusion={"step": 1, "classes": 90_000, "counts": [[1, 2, 3]]})
    assert "taken for" not in write_page(written(tmp_path, found, lines(20))).read_text()
