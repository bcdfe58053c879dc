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
from tests.docs.blocks import ROOT
from tests.parity.browser import Browser

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
