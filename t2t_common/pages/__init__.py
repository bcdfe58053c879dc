"""HTML pages: one layout, one style sheet and the templates of all pages, each of which is a single file."""

from t2t_common.pages.render import png, render

__all__ = ["png", "render"]
