"""Writes the report: one HTML file that holds its style, charts and pictures, and loads nothing from
anywhere."""

from __future__ import annotations

import html
from pathlib import Path

from mcjepa.data_prep.storage import atomic_write
from mcjepa.evals.pictures import png_bytes, wheel_picture
from mcjepa.evals.report.comparison import comparison_section, paper_section
from mcjepa.evals.report.content import DatasetSummary, QuarantinedInput, ReportContent, Tile, headline_tiles
from mcjepa.evals.report.sections import (
    commands_section,
    curves_section,
    data_section,
    lineage_section,
    pictures_section,
    scores_section,
    tiles_section,
)

__all__ = ["DatasetSummary", "QuarantinedInput", "ReportContent", "Tile", "headline_tiles", "write_report"]

_FLOW_NOTE = (
    "Hue is the direction of motion, saturation its length (Middlebury colours); every row has the scale of "
    "its ground truth. Black: no ground truth."
)
_FEATURE_NOTE = (
    "The three main directions of the features of a whole video as red, green and blue: what keeps its "
    "colour keeps its features."
)
_SEGMENTATION_NOTE = "Classes as tints over the image, by the linear head on frozen features; void is not tinted."
_VOS_NOTE = "The first frame's mask is given; the model's features carry it through the video."
_FINETUNE_NOTE = "Classes as tints over the image, by the whole encoder trained with UperNet; void is not tinted."
_CLASSES_NOTE = "Validation images as the frozen model sees them, with their class."


def render_report(content: ReportContent) -> str:
    """The page as text; the scores' picture files are read and embedded."""
    scores = content.scores
    sections = [
        ("headline", "Headline", tiles_section(content.tiles)),
        ("paper", "Beside the paper", paper_section(content.evaluations)),
        ("comparison", "Side by side", comparison_section(content.evaluations)),
        ("curves", "Training curves", curves_section(content.curves)),
        ("flow", "Optical flow", pictures_section(scores, "flow", _FLOW_NOTE, png_bytes(wheel_picture()))),
        ("features", "Features", pictures_section(scores, "features", _FEATURE_NOTE)),
        ("segmentation", "Segmentation probe", pictures_section(scores, "segmentation", _SEGMENTATION_NOTE)),
        ("masks", "Mask propagation", pictures_section(scores, "vos", _VOS_NOTE)),
        ("finetune", "Fine-tuned segmentation", pictures_section(scores, "finetune", _FINETUNE_NOTE)),
        ("classes", "Image classification", pictures_section(scores, "classification", _CLASSES_NOTE)),
        ("scores", "Scores and cards", scores_section(scores)),
        ("data", "Data", data_section(content.datasets, content.quarantined)),
        ("lineage", "Lineage and versions", lineage_section(content)),
        ("commands", "To reproduce", commands_section(content.commands)),
    ]
    return page(content.title, content.summary, sections)


def write_report(path: Path, content: ReportContent) -> None:
    """Writes the page to `path` in one step: a reader sees the old file or the whole new one.

    Raises:
        OSError: a picture file is missing, or the page cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, render_report(content).encode())


# The report's frame: style, a small script for the charts' cursors, and the page around the sections.


STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--panel:#fff;--ink:#1c1f23;--dim:#666d76;--line:#e3e5e8;
--accent:#2563c9;
--soft:#b9cdf0;--rival:#a9b0b9;--good:#1a7f4b;--bad:#b3261e;--code:#f1f2f4}
@media (prefers-color-scheme:dark){:root{--bg:#14171b;--panel:#1c2026;--ink:#e7e9ec;--dim:#9aa2ad;
--line:#2f353d;
--accent:#76a9fa;--soft:#34507f;--rival:#626b77;--good:#4cc38a;--bad:#ff8a80;--code:#252a31}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:3.5rem}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main,footer{max-width:1180px;margin:0 auto;padding:0 24px}
header{padding-top:36px}h1{font-size:1.9rem;line-height:1.2;margin:0 0 .4rem;letter-spacing:-.015em}
h2{font-size:1.25rem;margin:2.8rem 0 .2rem;letter-spacing:-.01em}h3{font-size:1rem;margin:1.6rem 0 .6rem}
p{margin:.2rem 0 1rem;max-width:75ch}.dim{color:var(--dim)}
small{color:var(--dim)}.bad{color:var(--bad)}.good{color:var(--good)}
nav{position:sticky;top:0;z-index:2;background:var(--bg);border-bottom:1px solid var(--line);
margin-top:14px}
nav div{max-width:1180px;margin:0 auto;padding:10px 24px;display:flex;gap:6px 20px;flex-wrap:wrap}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(270px,1fr));gap:16px;margin:18px 0}
.tile,.chart,details,.panelbox{background:var(--panel);border:1px solid var(--line);border-radius:10px}
.tile{padding:16px 18px}.tile h3{margin:0;font-size:.92rem}.tile small{color:var(--dim)}
.tile .big{font-size:2.1rem;font-weight:650;letter-spacing:-.02em;line-height:1.3}
.tile .big span{font-size:1rem;
font-weight:450;color:var(--dim);margin-left:.3rem}
.tile .verdict{font-size:.88rem;margin:0 0 .7rem}
.bars{display:grid;grid-template-columns:max-content 1fr max-content;gap:5px 10px;font-size:.82rem;
align-items:center}
.bars i{display:block;height:9px;border-radius:5px;background:var(--rival);min-width:2px}
.bars i.us{background:var(--accent)}.bars b,.bars span:nth-child(3n){text-align:right;
font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(265px,1fr));gap:12px}
.chart{margin:0;padding:10px 12px 4px}.chart figcaption{display:flex;gap:8px;align-items:baseline;
font-size:.85rem}
.chart b{font-weight:550;overflow-wrap:anywhere}
.chart output{margin-left:auto;color:var(--dim);white-space:nowrap;font-variant-numeric:tabular-nums}
.chart svg{width:100%;display:block;overflow:visible}.chart text{font-size:10px;fill:var(--dim)}
.chart .grid{stroke:var(--line)}.chart path{fill:none;stroke-linejoin:round}.raw{stroke:var(--soft);
stroke-width:1}
.smooth{stroke:var(--accent);stroke-width:1.8}.cursor{visibility:hidden}.cursor line{stroke:var(--dim)}
.cursor circle{fill:var(--accent)}
.strip{margin:14px 0 22px}.strip .heads{display:grid;grid-auto-flow:column;grid-auto-columns:1fr;gap:6px;
font-size:.8rem;color:var(--dim);margin-bottom:3px}
.strip img{width:100%;display:block;border-radius:4px;outline:1px solid var(--line)}
.strip figcaption{font-size:.84rem;margin-top:5px}figure{margin:0}
.noted{display:flex;gap:14px;align-items:center;margin-top:.4rem}.noted p{margin:0}.key{width:58px;
height:58px;border-radius:50%}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:.8rem;color:var(--dim)}
.legend i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:5px}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.86rem;margin:.4rem 0 1rem}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:550;color:var(--dim);white-space:nowrap}td.n,th.n{text-align:right;
font-variant-numeric:tabular-nums}
td.wrap{overflow-wrap:anywhere}
details{padding:0 16px;margin:10px 0}summary{cursor:pointer;padding:11px 0;font-weight:550}
details[open] summary{border-bottom:1px solid var(--line);margin-bottom:10px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px;font-size:.86rem;margin:.3rem 0 1rem}
dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
code,pre{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--code);padding:10px 12px;border-radius:8px;overflow-x:auto;margin:.2rem 0 1rem}
footer{padding-top:30px;padding-bottom:50px;color:var(--dim);font-size:.82rem}
@media (max-width:640px){dl{grid-template-columns:1fr}dt{margin-top:6px}}
@media print{nav{display:none}details{break-inside:avoid}}
"""

SCRIPT = """
document.querySelectorAll('svg[data-points]').forEach(svg => {
  const points = JSON.parse(svg.dataset.points), cursor = svg.querySelector('.cursor');
  const output = svg.parentElement.querySelector('output'), rest = output.textContent;
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    let near = points[0];
    for (const point of points) if (Math.abs(point[2] - x) < Math.abs(near[2] - x)) near = point;
    cursor.style.visibility = 'visible';
    cursor.querySelector('line').setAttribute('x1', near[2]);
    cursor.querySelector('line').setAttribute('x2', near[2]);
    cursor.querySelector('circle').setAttribute('cx', near[2]);
    cursor.querySelector('circle').setAttribute('cy', near[3]);
    output.textContent = 'step ' + Math.round(near[0]) + ': ' + Number(near[1].toPrecision(4));
  });
  svg.addEventListener('pointerleave', () => {
    cursor.style.visibility = 'hidden';
    output.textContent = rest;
  });
});
"""

# The policy lets the page load nothing from anywhere, whatever text ends up in it.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(title: str, summary: str, sections: list[tuple[str, str, str]]) -> str:
    """The whole document.

    Args:
        title: heading, plain text.
        summary: sentence below it, plain text.
        sections: (anchor, heading, body as HTML); one with an empty body is left out.
    """
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{anchor}">{html.escape(heading)}</a>' for anchor, heading, _ in shown)
    bodies = "\n".join(
        f'<section id="{anchor}"><h2>{html.escape(heading)}</h2>{body}</section>' for anchor, heading, body in shown
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>"
        f"<header><h1>{html.escape(title)}</h1><p class='dim'>{html.escape(summary)}</p></header>"
        f"<nav><div>{links}</div></nav>\n<main>{bodies}</main>\n"
        f"<footer>Written by mcjepa. This file is complete in itself and loads nothing.</footer>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )
