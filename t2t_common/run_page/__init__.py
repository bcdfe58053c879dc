"""The page of a run, `report.html` in its workdir: how far it is, its curves, its images, its mistakes, its recipe.

One file without scripts that fetches nothing. While the run goes on it is written again every few seconds and loads
itself again. It is made from `metrics.jsonl` and `run.json` alone, so that `python -m t2t_common.run_page WORKDIR` can
make it at any time.
"""

from t2t_common.run_page.page import PAGE_FILE, write_page
from t2t_common.run_page.writer import RunPage

__all__ = ["PAGE_FILE", "RunPage", "write_page"]
