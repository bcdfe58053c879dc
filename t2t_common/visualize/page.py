"""Page of a visualisation: the model's input, its predictions and the sections, for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from t2t_common import pages
from t2t_common.visualize.draw import Section


class Picture(NamedTuple):
    """Page content for one image: the model's input, the predictions (best first), and the sections."""

    name: str
    seen: Image.Image
    says: Sequence[str]
    sections: Sequence[Section]


def page(title: str, facts: Sequence[str], pictures: Sequence[Picture], of_model: Sequence[Section]) -> str:
    """Return the document; `facts` are lines about the model, `of_model` the sections that are the same for all
    images."""
    return pages.render("pictures.html", kind="plain", title=title, facts=facts, pictures=pictures, of_model=of_model)
