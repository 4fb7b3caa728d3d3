"""Report and card in a real browser, on a desktop and on a phone: where links land, what fits, what is seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mcjepa.data_prep.card.charts import Curve
from mcjepa.data_prep.card.content import write_card
from mcjepa.data_prep.corpora.image_files import write_png as write_image
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from mcjepa.evals.cards import Card, Picture, Score
from mcjepa.evals.pictures import class_legend, side_by_side, write_png
from mcjepa.evals.report.comparison import Evaluated
from mcjepa.evals.report.content import DatasetSummary, QuarantinedInput, ReportContent, headline_tiles
from mcjepa.evals.report.page import write_report
from tests.data_prep.small_corpora import build_dataset
from tests.evals.report.browser import Browser, require_chromium

WINDOWS = ((1280, 800), (390, 844))
NEAR_PX = 8
LANDINGS = """(async () => {
  const off = [], bar = document.querySelector('nav').getBoundingClientRect().height;
  for (const link of document.querySelectorAll('nav a')) {
    window.scrollTo(0, 0);
    link.click();
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
    const section = document.getElementById(link.hash.slice(1));
    const wanted = parseFloat(getComputedStyle(document.documentElement).scrollPaddingTop);
    const top = section.getBoundingClientRect().top;
    off.push([link.hash, top - wanted, top - bar]);
  }
  return off;
})()"""
TOO_WIDE = """[...document.body.querySelectorAll('*')]
  .filter(one => !one.closest('.scroll') && !one.closest('pre') && !one.closest('nav') && !one.closest('svg'))
  .filter(one => one.getBoundingClientRect().right > innerWidth + 0.5)
  .map(one => one.tagName + '.' + one.className)"""
PICTURES = """[...document.images].map(one => {
  const box = one.getBoundingClientRect(), style = getComputedStyle(one);
  return {natural: [one.naturalWidth, one.naturalHeight],
          stated: [one.getAttribute('width'), one.getAttribute('height')], loading: one.loading,
          shown: box.width, height: box.height, rendering: style.imageRendering,
          strip: !!one.closest('.strip') && !one.closest('.plot'),
          masks: !!one.closest('.masks'), plot: !!one.closest('.plot')};
})"""
SCROLLED = """(async () => {
  document.querySelectorAll('details').forEach(one => one.open = true);
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  return [...document.querySelectorAll('div.scroll[tabindex]')].map(one => [
    one.scrollWidth > one.clientWidth + 1, one.querySelector('.hint').getBoundingClientRect().height > 10]);
})()"""
ROWS = """[...document.querySelectorAll('.strip.flow .panels')].map(
  row => new Set([...row.children].map(one => Math.round(one.getBoundingClientRect().top))).size)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(require_chromium()) as one:
        yield one


def _score(folder: Path, name: str, kind: str, columns: tuple[str, ...], step: int) -> Score:
    panels = [np.random.default_rng(n).integers(0, 255, (90, 160, 3), np.uint8) for n in range(len(columns))]
    pictures = [
        Picture(caption=f"picture {n}", path=path, kind=kind, columns=columns, legend=class_legend(("a", "b")))
        for n in range(3)
        if (path := write_png(folder / name / f"{n}.png", side_by_side(panels)))
    ]
    if kind == "segmentation":
        plot = write_png(folder / name / "confusion.png", panels[0].repeat(5, 0).repeat(5, 1))
        pictures.append(Picture(caption="confusion", path=plot, kind=kind, columns=("rows: truth",)))
    metrics = {"epe": 2.0, "epe_zero": 4.0, "epe_dis_medium": 1.5, "miou": 40.0, "miou_zero": 30.0}
    card = Card(
        data_set="s", split="val", root="/r/" + "deep/" * 40, frames=3, resolution="8x8", masks="all",
        aggregation="mean", lineage={"step": step}, failed=(f"x: {'no words to break at' * 9}",),
    )  # fmt: skip
    table = tuple({f"a column with a long name {k}": k * 1.5 for k in range(12)} for _ in range(5))
    return Score(
        name=name, metrics=metrics, card=card, rivals=("zero", "dis_medium"), table=table, pictures=tuple(pictures)
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section, long names, wide tables."""
    folder = tmp_path_factory.mktemp("report")
    kinds = {
        "flow/s": ("flow", ("frame", "truth", "model", "dis-medium", "model's error (0 to 5 px)")),
        "probe/s": ("segmentation", ("image", "truth", "model", "random encoder")),
        "vos/s": ("vos", ("frame", "truth", "predicted")),
    }
    scores = tuple(_score(folder, name, kind, columns, 2) for name, (kind, columns) in kinds.items())
    earlier = tuple(_score(folder / "earlier", name, kind, columns, 1) for name, (kind, columns) in kinds.items())
    curve: Curve = [(float(step), 1.0 / (1 + step)) for step in range(50)]
    content = ReportContent(
        title="A report",
        summary="Of a test. " + "w" * 200,
        tiles=headline_tiles(scores),
        curves={f"loss/{name}": curve for name in "abcde"},
        scores=scores,
        evaluations=(Evaluated(label="step-1", scores=earlier), Evaluated(label="step-2", scores=scores)),
        datasets=(DatasetSummary(name="clips", dataset_id="9f" * 32, counts=dict.fromkeys("abcdefgh", 3)),),
        quarantined=(QuarantinedInput(dataset="clips", uri="/v/" + "x" * 90, reason="cut off " * 30),),
        lineage=(("weights sha256", "9b" * 32),),
        commands=(("all of it", "mcjepa quickstart " + "word " * 60),),
    )
    write_report(folder / "report.html", content)
    return folder / "report.html"


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of a dataset of pictures, one of which is damaged."""
    folder = tmp_path_factory.mktemp("card")
    (folder / "in").mkdir()
    for n in range(5):
        write_image(folder / f"in/{n}.png", np.random.default_rng(n).integers(0, 255, (64, 96, 3), np.uint8))
    whole = (folder / "in/0.png").read_bytes()
    (folder / f"in/{'long' * 40}.png").write_bytes(whole[: len(whole) // 2])
    corpora = (CorpusConfig(reader="images", path=str(folder / "in")),)
    build_dataset(folder / "d", DatasetConfig(kind="image", corpora=corpora))
    return Path(write_card(str(folder / "d")))


@pytest.fixture(params=["report", "card"])
def page(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("window", WINDOWS)
def test_every_link_lands_at_its_section(browser: Browser, page: Path, window: tuple[int, int]) -> None:
    browser.open(page, *window)
    landings = browser.run(LANDINGS)
    assert len(landings) >= 4
    assert [one for one in landings if abs(one[1]) > NEAR_PX or one[2] < 0] == []


@pytest.mark.parametrize("window", WINDOWS)
def test_nothing_is_wider_than_the_window_but_what_scrolls_in_its_own_box(
    browser: Browser, page: Path, window: tuple[int, int]
) -> None:
    browser.open(page, *window)
    tables = browser.run(SCROLLED)
    assert tables and all(wide == said for wide, said in tables)
    assert browser.run("document.documentElement.scrollWidth") == window[0]
    assert browser.run(TOO_WIDE) == []


@pytest.mark.parametrize("window", WINDOWS)
def test_every_picture_is_there_with_its_size(browser: Browser, page: Path, window: tuple[int, int]) -> None:
    browser.open(page, *window)
    pictures = browser.run(PICTURES)
    assert pictures
    for one in pictures:
        assert min(one["natural"]) > 0 and [int(side) for side in one["stated"]] == one["natural"]
        assert one["loading"] != "lazy" and min(one["shown"], one["height"]) > 0


def test_masks_and_plots_stay_sharp(browser: Browser, report: Path) -> None:
    for window in WINDOWS:
        browser.open(report, *window)
        pictures = browser.run(PICTURES)
        assert {one["rendering"] for one in pictures if one["masks"] or one["plot"]} == {"pixelated"}
        plots = [one for one in pictures if one["plot"]]
        assert plots and all(one["shown"] == one["natural"][0] for one in plots)


def test_pictures_are_large_enough_to_judge(browser: Browser, report: Path) -> None:
    """Five panels of flow in two rows on a desktop, one below the other on a phone; none under 300 px."""
    for window, rows in zip(WINDOWS, (2, 5), strict=True):
        browser.open(report, *window)
        assert set(browser.run(ROWS)) == {rows}
        assert min(one["shown"] for one in browser.run(PICTURES) if one["strip"]) >= 300


def test_the_headline_names_the_strongest_baseline_first(browser: Browser, report: Path) -> None:
    for window in WINDOWS:
        browser.open(report, *window)
        said = browser.run(
            "[...document.querySelectorAll('.tile .verdict')].map(one => [one.className, one.innerText])"
        )
        assert said[:2] == [["verdict bad", "133% of DIS medium's"], ["verdict good", "50% of zero flow's"]]


def test_a_wide_table_says_that_it_scrolls_also_without_scroll_timelines(browser: Browser, report: Path) -> None:
    """As in Firefox, which has no such animations: the shadow at its end is then what says so."""
    browser.open(report, *WINDOWS[1])
    boxes = "[...document.querySelectorAll('main > section > .scroll')]"
    shadows = browser.run(f"{boxes}.map(one => getComputedStyle(one).backgroundImage)")
    assert shadows and all("gradient" in one for one in shadows)
