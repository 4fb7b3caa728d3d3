"""The report: self-contained, everything escaped, all sections, charts drawn from data, odd input."""

from __future__ import annotations

import base64
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from mcjepa.data_prep.card.charts import format_number, line_chart
from mcjepa.evals.cards import Card, Picture, Score
from mcjepa.evals.pictures import side_by_side, write_png
from mcjepa.evals.report.content import DatasetSummary, QuarantinedInput, ReportContent, headline_tiles
from mcjepa.evals.report.page import render_report, write_report

EVIL = "<script>alert(\"1\")</script> & 'quote'"
VOID_TAGS = {"meta", "img"}


class _Outline(HTMLParser):
    """Collects ids, addresses and unbalanced tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID_TAGS:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href") and value:
                self.links.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _content(folder: Path) -> ReportContent:
    picture = Picture(
        caption=f"pair {EVIL}",
        path=write_png(folder / "p.png", side_by_side([np.zeros((8, 16, 3), np.uint8)] * 2)),
        kind="flow",
        columns=("frame", EVIL),
        legend=((EVIL, "#ff0000"),),
    )
    card = Card(
        data_set=EVIL,
        split="val",
        root="/r",
        frames=3,
        resolution="8x8",
        masks="all",
        aggregation="mean",
        failed=(f"x: {EVIL}",),
        config={"key": EVIL},
    )
    scores = (
        Score(
            name="flow/s",
            metrics={
                "epe": 2.1,
                "epe_matched": 1.0,
                "epe_zero": 4.2,
                "epe_matched_zero": 3.0,
                "epe_dis_medium": 1.5,
            },
            card=card,
            rivals=("zero", "dis_medium"),
            table=({"pair": EVIL, "epe": 2.1},),
            pictures=(picture,),
        ),
        Score(name="probe/s", metrics={"miou": 40.0, "miou_random": 45.0}, card=card, rivals=("random",)),
    )
    return ReportContent(
        title=f"Report {EVIL}",
        summary=EVIL,
        tiles=headline_tiles(scores),
        curves={f"loss/{EVIL}": [(0, 3.0), (1, math.nan), (2, 1.0)], "lr": [(0, 0.1)]},
        scores=scores,
        datasets=(DatasetSummary(name="clips", dataset_id="9f", counts={"ok": 3, "quarantined": 1}),),
        quarantined=(QuarantinedInput(dataset="clips", uri=f"/v/{EVIL}.mp4", reason=EVIL),),
        lineage=(("run", EVIL),),
        versions=(("torch", "2"),),
        commands=(("all", f"mcjepa quickstart {EVIL}"),),
    )


def test_every_text_is_escaped_and_every_tag_closed(tmp_path: Path) -> None:
    text = render_report(_content(tmp_path))
    assert "<script>alert" not in text
    assert text.count("<script>") == 1
    outline = _Outline()
    outline.feed(text)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))


def test_page_loads_nothing_from_anywhere(tmp_path: Path) -> None:
    write_report(tmp_path / "deep" / "report.html", _content(tmp_path))
    text = (tmp_path / "deep" / "report.html").read_text()
    outline = _Outline()
    outline.feed(text)
    assert outline.links and all(link.startswith(("#", "data:image/webp;base64,")) for link in outline.links)
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"(https?:)?//[a-z]|@import|url\(", without_pictures)
    assert "default-src 'none'" in text
    embedded = [link for link in outline.links if link.startswith("data:")]
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(embedded[-1].split(",")[1]), np.uint8), -1)
    assert picture.shape[:2] == (8, 16)


def test_all_sections_stand_in_order_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    outline = _Outline()
    outline.feed(render_report(_content(tmp_path)))
    assert outline.ids == ["headline", "curves", "flow", "scores", "data", "lineage", "commands"]
    empty = _Outline()
    empty.feed(render_report(ReportContent(title="nothing yet")))
    assert empty.ids == [] and empty.open == []


def test_metrics_of_baselines_become_columns(tmp_path: Path) -> None:
    text = render_report(_content(tmp_path))
    n = '<td class="n">'
    assert f"<tr><td>epe <small>px</small></td>{n}2.1</td>{n}4.2</td>{n}1.5</td></tr>" in text
    assert f"<tr><td>epe_matched <small>px</small></td>{n}1</td>{n}3</td>{n}</td></tr>" in text
    assert "epe_zero" not in text


def test_tiles_compare_with_every_baseline_and_say_when_the_model_loses(tmp_path: Path) -> None:
    content = _content(tmp_path)
    flow, probe = content.tiles
    assert flow.rivals == (("zero flow", 4.2), ("DIS medium", 1.5))
    text = render_report(content)
    lines = re.findall(r'class="verdict (good|bad)">([^<]*)<', text)
    assert lines[:2] == [("bad", "140% of DIS medium&#39;s"), ("good", "50% of zero flow&#39;s")]
    assert re.search(r'class="verdict bad">-5 points against random encoder', text)
    assert probe.unit == "%" and not probe.lower_is_better


def test_incomplete_scores_are_marked(tmp_path: Path) -> None:
    assert "Incomplete: 1 items" in render_report(_content(tmp_path))


def test_missing_picture_is_an_error_and_leaves_no_report(tmp_path: Path) -> None:
    content = _content(tmp_path)
    (tmp_path / "p.png").unlink()
    with pytest.raises(OSError, match=r"p\.png"):
        write_report(tmp_path / "report.html", content)
    assert not (tmp_path / "report.html").exists()


def test_chart_counts_values_that_are_not_finite() -> None:
    chart = line_chart("loss", [(0, 1.0), (1, math.nan), (2, math.inf), (3, 0.5)])
    assert chart.warning == "2 not finite"
    assert "nan" not in chart.svg and "inf" not in chart.svg
    assert not line_chart("loss", [(0, math.nan)]).svg


def test_chart_places_points_on_its_canvas() -> None:
    path = re.search(r'class="raw" d="M([^"]*)"', line_chart("loss", [(0, 2.0), (50, 1.0), (100, 0.0)]).svg)
    assert path is not None
    assert path.group(1) == "46.0,10.0L169.0,70.0L292.0,130.0"


def test_long_curve_is_thinned_but_keeps_its_mean_and_end() -> None:
    curve = [(float(step), float(step % 2)) for step in range(10_000)]
    chart = line_chart("loss", curve)
    path = re.search(r'class="raw" d="M([^"]*)"', chart.svg)
    assert path is not None and path.group(1).count("L") < 240
    assert chart.last == "0.5"


def test_constant_and_single_point_curves_are_drawn() -> None:
    for curve in ([(0, 0.0)], [(0, 3.0), (10, 3.0)]):
        assert "NaN" not in line_chart("flat", curve).svg


def test_numbers_read_well() -> None:
    numbers = (0.1, 99.95, 123456.7, 1e-9, -2.5, float("inf"))
    assert [format_number(value) for value in numbers] == [
        "0.1",
        "99.95",
        "123457",
        "1e-09",
        "-2.5",
        "infinite",
    ]
