"""Report page of a run, `report.html` in its workdir: progress, curves, sample images, confusion matrix, recipe.

The page is one self-contained HTML file without scripts. During a run it is rewritten every few seconds and reloads
itself. It is generated only from `metrics.jsonl` and `run.json`, so `python -m t2t_common.run_page WORKDIR` can
regenerate it at any time.
"""

from t2t_common.run_page.page import PAGE_FILE, write_page
from t2t_common.run_page.writer import RunPage

__all__ = ["PAGE_FILE", "RunPage", "write_page"]
