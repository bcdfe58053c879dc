"""The page: what it says, and that a browser shows it well, on a desk, on a phone, by day and by night."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parity import Report
from tests.support.parity.browser import DARK, LIGHT, Browser
from tests.support.parity.samples import failing, passing, trained, with_rows

PHONE, DESK = 390, 1280
REPORTS = {"passing": passing, "failing": failing, "trained": trained}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return Browser(tmp_path_factory.mktemp("chromium"))


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize(("width", "scheme"), [(PHONE, LIGHT), (DESK, LIGHT), (PHONE, DARK)])
def test_nothing_sticks_out_and_everything_is_legible(browser: Browser, name: str, width: int, scheme: int) -> None:
    found = browser.measure(REPORTS[name]().to_html(), width, scheme)
    assert found["width"] <= width
    assert found["outside"] == []
    assert found["faint"] == []
    assert (np.mean(found["background"]) < 64) == (scheme == DARK)


def test_the_measure_itself_finds_what_sticks_out_and_what_is_faint(browser: Browser) -> None:
    page = '<body style="background: #fff"><p style="width: 2000px">wide</p><p style="color: #ccc">faint</p></body>'
    found = browser.measure(page, PHONE)
    assert found["width"] > PHONE
    assert any("wide" in element for element in found["outside"])
    assert [element.rpartition(" ")[0] for element in found["faint"]] == ["P : faint"]


@pytest.mark.parametrize("name", REPORTS)
def test_the_browser_has_nothing_to_complain_about(browser: Browser, name: str) -> None:
    assert browser.console(REPORTS[name]().to_html()) == []


@pytest.mark.parametrize("smuggled", ["<script>1</script>", '<img src="https://example.org/x.png">'])
def test_the_page_runs_no_script_and_fetches_nothing(browser: Browser, smuggled: str) -> None:
    page = passing().to_html()
    assert "http" not in page.replace("http-equiv", "")
    assert any(
        "Content Security Policy" in line for line in browser.console(page.replace("<main>", f"<main>{smuggled}"))
    )


def test_title_says_model_and_verdict(browser: Browser) -> None:
    assert browser.measure(passing().to_html(), DESK)["title"] == "Net: EQUAL"
    named = dataclasses.replace(failing(), settings={"name": "vit_x"})
    assert browser.measure(named.to_html(), DESK)["title"] == "vit_x: DIFFERENT"


def test_the_verdict_stands_on_top_with_divergence_and_cause(browser: Browser) -> None:
    text = browser.measure(failing().to_html(), DESK)["text"]
    top = text[: text.index("Error against depth")]
    for expected in ("DIFFERENT", "First divergence: blocks.1.norm", "eps is 1e-05 in PyTorch, 1e-03 in JAX"):
        assert expected in top


@pytest.mark.parametrize("name", REPORTS)
def test_what_is_drawn_is_also_told(browser: Browser, name: str) -> None:
    report = REPORTS[name]()
    found = browser.measure(report.to_html(), DESK)
    assert found["language"] == "en"
    assert len(found["captions"]) >= 3
    assert all(found["captions"])
    assert len(found["pictures"]) == (4 if report.trajectory else 2)
    assert all("error" in label or "Distance" in label or "Loss" in label for label in found["pictures"])


def test_the_tree_is_open_where_something_fails_and_in_the_outer_two_levels(browser: Browser) -> None:
    assert set(browser.measure(passing().to_html(), DESK)["open"]) == {"", "blocks"}
    found = browser.measure(failing().to_html(), DESK)
    assert set(found["open"]) == {"", "blocks", "blocks.1"}
    assert "blocks.1.norm" in found["seen"]
    assert "blocks.0.norm" not in found["seen"]


def height_of(found: dict, label: str) -> float:
    """Pixels from the top of the first plot's grid line with this label."""
    return next(tick["y"] for tick in found["ticks"] if tick["text"] == label)


def test_zero_lies_on_the_bottom_edge_and_infinity_on_the_top_edge(browser: Browser) -> None:
    wrong = with_rows(passing(), {("stem", "layer", "free", "float64"): math.inf})
    found = browser.measure(wrong.to_html(), DESK)
    free = [mark for mark in found["marks"] if mark["style"] == "mark dot free64"]
    forced = [mark for mark in found["marks"] if mark["style"] == "mark ring forced64"]
    # The first mark of each style is the legend's, the second the first layer's.
    assert free[1]["y"] == pytest.approx(height_of(found, "∞"), abs=2)
    assert forced[1]["y"] == pytest.approx(height_of(found, "0"), abs=2)
    heights = [tick["y"] for tick in found["ticks"][: [tick["text"] for tick in found["ticks"]].index("∞") + 1]]
    assert min(heights) == height_of(found, "∞")
    assert max(heights) == height_of(found, "0")


def test_a_figure_lies_at_its_height_on_the_log_axis(browser: Browser) -> None:
    found = browser.measure(passing().to_html(), DESK)
    label = next(tick["text"] for tick in found["ticks"] if tick["text"].startswith("1e-"))
    changed = with_rows(passing(), {("stem", "layer", "free", "float32"): float(label)})
    found = browser.measure(changed.to_html(), DESK)
    marks = [mark for mark in found["marks"] if mark["style"] == "mark square jax32"]
    assert marks[1]["y"] == pytest.approx(height_of(found, label), abs=2)


def test_failures_are_ringed_and_the_first_divergence_is_marked(browser: Browser) -> None:
    assert "failed" not in " ".join(mark["style"] for mark in browser.measure(passing().to_html(), DESK)["marks"])
    found = browser.measure(failing().to_html(), DESK)
    rings = [mark for mark in found["marks"] if "failed" in mark["style"]]
    assert len(rings) == 13  # six layers in two precisions, and the culprit on correct inputs
    assert len(found["highlights"]) == 1
    assert found["highlights"][0]["x"] == pytest.approx(min(ring["x"] for ring in rings), abs=1)


def test_names_cannot_break_the_page(browser: Browser) -> None:
    evil = '</style><script>document.title = "broken"</script>&"<b>'
    report = dataclasses.replace(passing(), layers=((evil, evil),), settings={"name": evil, evil: evil})
    found = browser.measure(report.to_html(), PHONE)
    assert found["title"] == f"{evil}: EQUAL"
    assert evil in found["text"]


def test_a_report_of_nothing_is_a_page_that_says_so(browser: Browser) -> None:
    nothing = Report((), passing().ledger, (), environment={})
    found = browser.measure(nothing.to_html(), PHONE)
    assert found["title"] == "model: DIFFERENT"
    assert "nothing was compared" in found["text"]


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_picture_holds_something(browser: Browser, tmp_path: Path, width: int) -> None:
    target = tmp_path / "page.png"
    browser.screenshot(failing().to_html(), target, width, 1500)
    picture = np.asarray(Image.open(target).convert("RGB"))[:, :width]
    assert picture.shape == (1500, width, 3)
    colours = {tuple(colour) for colour in picture.reshape(-1, 3)[::7]}
    assert len(colours) > 50


def test_the_page_is_written_where_asked(tmp_path: Path) -> None:
    text = passing().to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text
