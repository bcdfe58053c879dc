"""The picture of `tools.benchmarks.speed`: a bar for every contestant, and where matrix products alone would end."""

from __future__ import annotations

from html import escape
from typing import Any

WIDTH, LEFT, RIGHT, ROW, HEAD, TOP = 760, 230, 110, 30, 46, 16
STYLE = """
svg { background: #fff }
text { font: 14px system-ui, sans-serif; fill: #57606a }
.title { fill: #1f2328; font-weight: 600 }
.name { fill: #1f2328; text-anchor: end } .ours { fill: #0b57d0 } .other { fill: #9fb3c8 } .limit { stroke: #c4620a }
.limit-text { fill: #a04f07 }
.in-ours, .in-other { text-anchor: end; fill: #fff } .in-other { fill: #1f2328 }
""".strip()


def chart(report: dict[str, Any]) -> str:
    """A report of `tools.benchmarks.speed` as SVG."""
    parts, top = [], TOP
    for task, found in report["tasks"].items():
        parts.append(_panel(task, found, top))
        top += HEAD + ROW * len(found["contestants"]) + 26
    size = f'width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    title = f"<title>Images a second, {escape(report['setup']['model'])}</title>"
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{title}<style>{STYLE}</style>\n{body}\n</svg>\n'


def _panel(task: str, found: dict[str, Any], top: int) -> str:
    contestants = found["contestants"]
    limit = found["limit_images_a_second"]
    scale = (WIDTH - LEFT - RIGHT) / max(limit, *(c["images_a_second"] for c in contestants.values()))
    bottom = top + HEAD + ROW * len(contestants)
    x = LEFT + limit * scale
    parts = [f'<text class="title" x="{LEFT}" y="{top + 16}">{task}, images a second</text>']
    for i, (name, figures) in enumerate(contestants.items()):
        y, length = top + HEAD + ROW * i, figures["images_a_second"] * scale
        kind = "ours" if name.startswith("t2t_") else "other"
        parts.append(f'<text class="name" x="{LEFT - 10}" y="{y + 16}">{escape(name)}</text>')
        parts.append(f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{length:.1f}" height="22" rx="3"/>')
        parts.append(
            f'<text class="in-{kind}" x="{LEFT + length - 8:.1f}" y="{y + 16}">{figures["images_a_second"]:.2f}</text>'
        )
    parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{top + HEAD - 8}" y2="{bottom}"/>')
    text = f"matrix products alone: {limit:.1f}"
    parts.append(f'<text class="limit-text" x="{x:.1f}" y="{top + HEAD - 14}" text-anchor="middle">{text}</text>')
    return "\n".join(parts)
