"""Headless Chromium: what a page looks like, and what is wrong with it, measured in the browser itself."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)
LIGHT, DARK = 1, 0

# Runs beside the page, not in it: the page allows no script. The frame has the width to look at; the browser's own
# window cannot be narrower than 500 pixels.
MEASURE = """
function luminance([r, g, b]) {
  const part = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
}
const numbers = color => color.match(/[\\d.]+/g).map(Number);
function background(element) {
  for (; element; element = element.parentElement) {
    const color = numbers(getComputedStyle(element).backgroundColor);
    if (color.length === 3 || color[3] > 0) return color;
  }
  return [255, 255, 255];
}
function contrast(element) {
  const style = getComputedStyle(element);
  const color = numbers(element.ownerSVGElement ? style.fill : style.color);
  const [low, high] = [luminance(color), luminance(background(element))].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
window.onload = () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument, root = page.documentElement;
  const visible = [...page.body.querySelectorAll("*")].filter(e => e.checkVisibility() && e.getClientRects().length);
  const written = visible.filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
  const name = e => `${e.tagName} ${e.className.baseVal ?? e.className}: ${e.textContent.slice(0, 40)}`;
  const beyond = e => e.getBoundingClientRect().right > frame.clientWidth + 1;
  const box = e => { const r = e.getBoundingClientRect(); return {x: r.x + r.width / 2, y: r.y + r.height / 2}; };
  const of = selector => visible.filter(e => e.matches(selector));
  const result = {
    title: page.title,
    text: page.body.innerText,
    language: root.lang,
    width: root.scrollWidth,
    height: root.scrollHeight,
    background: numbers(getComputedStyle(page.body).backgroundColor),
    outside: visible.filter(e => !e.closest(".scroll > *, .hover") && beyond(e)).map(name),
    faint: written.filter(e => contrast(e) < 4.5).map(e => `${name(e)} ${contrast(e).toFixed(2)}`),
    captions: [...page.querySelectorAll("table")].map(t => t.caption?.textContent ?? ""),
    images: [...page.images].map(i => ({alt: i.alt, loaded: i.complete && i.naturalWidth > 0, width: i.width})),
    pictures: [...page.querySelectorAll("svg[role=img]")].map(s => s.getAttribute("aria-label") ?? ""),
    open: [...page.querySelectorAll(".tree details[open] > summary .name")].map(e => e.title),
    seen: of(".tree .row:not(.head) .name").map(e => e.title),
    ticks: of("text.tick").map(e => ({text: e.textContent, ...box(e)})),
    marks: of("path.mark").map(e => ({style: e.getAttribute("class"), ...box(e)})),
    highlights: of(".highlight").map(box),
  };
  const out = document.createElement("pre");
  out.id = "out";
  out.textContent = JSON.stringify(result);
  document.body.append(out);
};
"""


class Browser:
    """Chromium with a profile of its own in `folder`."""

    def __init__(self, folder: Path) -> None:
        found = shutil.which("chromium")
        if found is None:
            raise FileNotFoundError("chromium is not installed (Debian: apt-get install chromium)")
        self.command, self.folder = found, folder

    def run(self, page: Path, *switches: str, scheme: int = LIGHT) -> subprocess.CompletedProcess[str]:
        profile = f"--user-data-dir={self.folder / 'profile'}"
        scheme_switch = f"--blink-settings=preferredColorScheme={scheme}"
        command = [self.command, *SWITCHES, profile, scheme_switch, *switches, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    def console(self, document: str) -> list[str]:
        """What the browser has to say about a page."""
        log = self.run(self._write("page.html", document), "--dump-dom").stderr
        return re.findall(r"CONSOLE.*", log)

    def measure(self, document: str, width: int, scheme: int = LIGHT) -> dict[str, Any]:
        """MEASURE's findings about the page in a frame of `width` pixels."""
        out = self.run(self._framed(document, width, 4000, MEASURE), "--dump-dom", scheme=scheme).stdout
        found = re.search(r'<pre id="out">(.*?)</pre>', out, re.DOTALL)
        assert found, f"the page was not measured: {out[-500:]}"
        return json.loads(html.unescape(found[1]))

    def screenshot(self, document: str, target: Path, width: int, height: int, scheme: int = LIGHT) -> None:
        """A picture of the page's upper part; at least 500 pixels wide, white beside a narrower page."""
        size = f"--window-size={max(width, 500)},{height}"
        self.run(self._framed(document, width, height, ""), f"--screenshot={target}", size, scheme=scheme)

    def _framed(self, document: str, width: int, height: int, script: str) -> Path:
        style = f"border: 0; display: block; width: {width}px; height: {height}px"
        frame = f'<iframe style="{style}" srcdoc="{html.escape(document)}"></iframe>'
        return self._write(
            "frame.html",
            f'<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
            f'<body style="margin: 0">{frame}<script>{script}</script></body>',
        )

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path
