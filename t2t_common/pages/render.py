"""Render templates, by default those of this folder. Values are escaped; pages need no script and no other file."""

from __future__ import annotations

import base64
import functools
import io
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from t2t_config.text import escaped

HERE = Path(__file__).parent


def render(template: str, *, folder: Path = HERE, **values: Any) -> str:
    """Return the page made by the file `template` of `folder`, with unprintable characters shown as escapes."""
    return escaped(_environment(folder).get_template(template).render(values), keep="\n\t")


def png(image: Image.Image) -> str:
    """Encode an image as PNG in base64, for a `data:` address."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@functools.cache
def _environment(folder: Path) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["style"] = Markup((HERE / "style.css").read_text(encoding="utf-8"))
    environment.filters["png"] = png
    environment.filters["when"] = lambda iso: iso.replace("T", " ").replace("+00:00", " UTC")
    environment.filters["number"] = lambda value: f"{value:.4g}"
    return environment
