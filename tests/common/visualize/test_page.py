"""The page: everything is in it, it needs nothing else, and a browser shows it well on a desk and on a phone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from t2t_common.visualize.page import Picture, page
from t2t_common.visualize.sections import draw_image, draw_positions
from tests.support.pages.made_views import inside
from tests.support.parity.browser import DARK, LIGHT, Browser

PHONE, DESK = 390, 1280


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return Browser(tmp_path_factory.mktemp("chromium"))


def sample(name: str = "flower.jpg") -> str:
    image = Image.new("RGB", (48, 32), "gray")
    pictures = [Picture(name, image, ["daisy: 70.00 %", "bee: 1.00 %"], draw_image(inside(2), image))] * 2
    return page("What t2t_vit_micro sees", ["Weights: w.pth"], pictures, [draw_positions(inside())])


@pytest.mark.parametrize(("width", "scheme"), [(PHONE, LIGHT), (DESK, LIGHT), (PHONE, DARK)])
def test_nothing_sticks_out_and_everything_is_legible(browser: Browser, width: int, scheme: int):
    found = browser.measure(sample(), width, scheme)
    assert found["width"] <= width
    assert found["outside"] == []
    assert found["faint"] == []
    assert found["title"] == "What t2t_vit_micro sees"
    for words in ("daisy: 70.00 %", "Weights: w.pth", "Attention rollout", "distillation token", "The model"):
        assert words in found["text"]


def test_every_picture_is_shown_and_told(browser: Browser):
    found = browser.measure(sample(), PHONE)["images"]
    tiles = 2 * 2 * 2 + 2 * 2 + 8 + 8 + 12
    assert len(found) == 2 * (1 + tiles) + 1
    assert all(image["loaded"] and image["alt"] for image in found)
    assert len({image["alt"] for image in found}) == 1 + tiles + 1  # the same twice
    assert min(image["width"] for image in found) >= 60


def test_the_browser_has_nothing_to_complain_about(browser: Browser):
    assert browser.console(sample()) == []


def test_the_page_fetches_nothing_and_names_cannot_break_it(browser: Browser):
    assert "http" not in sample().replace("http-equiv", "")
    evil = '"><script>document.title = "broken"</script>&<b>.jpg'
    found = browser.measure(sample(evil), PHONE)
    assert found["title"] == "What t2t_vit_micro sees"
    assert evil in found["text"]
    smuggled = sample().replace("<main>", '<main><img src="https://example.org/x.png"><script>1</script>')
    assert len(re.findall("Content Security Policy", " ".join(browser.console(smuggled)))) >= 2


def test_the_picture_holds_something(browser: Browser, tmp_path: Path):
    browser.screenshot(sample(), tmp_path / "page.png", PHONE, 1200)
    picture = Image.open(tmp_path / "page.png").convert("RGB").crop((0, 0, PHONE, 1200))
    colours = picture.getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 1000
