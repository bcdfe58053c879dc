"""The site of docs/: builds without a warning, needs no other host, holds every public name, fits a phone."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import parity
import t2t_config
import t2t_jax
import t2t_torch
from tests.support.pages.code_blocks import ROOT
from tests.support.parity.browser import Browser

PHONE = 390
MEASURE = """
window.onload = () => {
  const widths = Object.fromEntries([...document.querySelectorAll("iframe")].map(frame => {
    const root = frame.contentDocument.documentElement;
    return [frame.title, root.querySelector("h1") ? root.scrollWidth : -1];
  }));
  document.body.innerHTML = "";
  const out = document.createElement("pre");
  out.id = "out";
  out.textContent = JSON.stringify(widths);
  document.body.append(out);
};
"""


LAPTOP = 1280
LAYOUT = """
const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
window.onload = async () => {
  const frames = [...document.querySelectorAll("iframe")];
  for (let tries = 0; tries < 100; tries++) {  // the theme's script puts the icons there
    if (frames.every(frame => frame.contentDocument.querySelector(".md-code__nav, html[data-plain]"))) break;
    await wait(50);
  }
  const found = Object.fromEntries(frames.map(frame => {
    const page = frame.contentDocument, all = selector => [...page.querySelectorAll(selector)];
    const style = element => frame.contentWindow.getComputedStyle(element);
    const wide = all("table").filter(table => table.querySelectorAll("tr:first-child > th").length > 6);
    return [frame.title, {
      icons: all("pre .md-code__nav").length,
      below: all("pre .md-code__nav").filter(icon => {
        const code = icon.parentElement.querySelector("code").getBoundingClientRect();
        return icon.offsetParent && code.right > icon.getBoundingClientRect().left + 1;
      }).length,
      cut: all("table").filter(table => table.scrollWidth > table.clientWidth + 1).length,
      wide: wide.length,
      broken: wide.flatMap(table => [...table.querySelectorAll("td, td code")]).filter(cell => {
        const range = page.createRange();
        range.selectNodeContents(cell);
        return new Set([...range.getClientRects()].map(box => Math.round(box.top / 8))).size > 2;
      }).length,
      pinned: wide.every(table => style(table.querySelector("td")).position === "sticky"),
      signatures: all(".doc-signature code").length,
      long: all(".doc-signature code").filter(code => code.scrollWidth > code.clientWidth + 1).length,
      pictures: all(".md-content img").filter(image => image.naturalWidth > 100).length,
    }];
  }));
  document.body.innerHTML = '<pre id="out"></pre>';
  document.getElementById("out").textContent = JSON.stringify(found);
};
"""
"""What a reader meets: icons that lie over code, tables that are cut, names that are broken, signatures that are."""


@pytest.fixture(scope="module")
def layout(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """LAYOUT's findings about some pages, in both widths, by "PAGE WIDTH"."""
    pages, folder = ("index", "parity", "ci", "api/parity"), tmp_path_factory.mktemp("layout")
    frames = [
        f'<iframe title="{name} {width}" src="{(site / f"{name}.html").as_uri()}" '
        f'style="width: {width}px; height: 900px"></iframe>'
        for name in pages
        for width in (PHONE, LAPTOP)
    ]
    (folder / "frames.html").write_text(f"<!doctype html><body>{''.join(frames)}<script>{LAYOUT}</script></body>")
    options = ("--allow-file-access-from-files", "--virtual-time-budget=20000", "--dump-dom")
    done = Browser(folder).run(folder / "frames.html", *options)
    found = re.search(r'<pre id="out">(\{.*?)</pre>', done.stdout)
    assert found, done.stdout[-500:]
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there(site: Path):
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file(), page


def test_nothing_comes_from_another_host(site: Path):
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="(.*?)"', page.read_text())
        assert loaded
        assert not [address for address in loaded if re.match(r"\w+:|//", address) and not address.startswith("data:")]
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", style.read_text()), style


@pytest.mark.parametrize("package", [parity, t2t_torch, t2t_jax, t2t_config], ids=lambda package: package.__name__)
def test_every_public_name_is_documented(site: Path, package):
    name = package.__name__
    anchors = set(re.findall(r'id="([\w.]+)"', (site / "api" / f"{name}.html").read_text()))
    for public in package.__all__:
        assert {f"{name}.{public}", f"{name}.check.{public}"} & anchors, public


def test_pages_fit_a_phone_and_leave_the_console_empty(site: Path, tmp_path: Path):
    pages = {page.relative_to(site).as_posix(): page for page in site.rglob("*.html") if page.name != "404.html"}
    frames = [
        f'<iframe title="{name}" src="{page.as_uri()}" style="width: {PHONE}px; height: 800px"></iframe>'
        for name, page in pages.items()
    ]
    frame = tmp_path / "frames.html"
    frame.write_text(f"<!doctype html><body>{''.join(frames)}<script>{MEASURE}</script></body>")
    done = Browser(tmp_path).run(frame, "--allow-file-access-from-files", "--dump-dom")
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout)
    assert found, done.stdout[-500:]
    widths = json.loads(html.unescape(found[1]))
    assert widths.keys() == pages.keys()
    assert not {name: width for name, width in widths.items() if not 0 < width <= PHONE}
    assert re.findall(r"CONSOLE.*", done.stderr) == []


@pytest.mark.parametrize("width", [PHONE, LAPTOP])
def test_the_figures_of_every_model_can_be_read(layout: dict[str, dict[str, int]], width: int):
    found = layout[f"parity {width}"]
    assert (found["wide"], found["broken"]) == (1, 0)
    assert found["pinned"]
    assert width == PHONE or not found["cut"]


@pytest.mark.parametrize("width", [PHONE, LAPTOP])
def test_no_icon_lies_over_code_and_signatures_wrap(layout: dict[str, dict[str, int]], width: int):
    for page in ("index", "ci"):
        assert layout[f"{page} {width}"]["icons"] > 1
        assert layout[f"{page} {width}"]["below"] == 0
    api = layout[f"api/parity {width}"]
    assert api["signatures"] > 10
    assert api["long"] == 0


def test_the_first_page_has_a_picture(layout: dict[str, dict[str, int]]):
    assert layout[f"index {LAPTOP}"]["pictures"] == 1
