"""The site of the pages: it is built without a warning, needs nothing from elsewhere, and its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import REPOSITORY

LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}


class _Page(HTMLParser):
    """What a page loads, where it links to, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        if tag in LOADS and LOADS[tag] in given and given.get("rel") not in ("next", "prev", "canonical"):
            self.loaded.append(given[LOADS[tag]])
        if tag == "a" and "href" in given:
            self.linked.append(given["href"])
        self.anchors |= {given[name] for name in ("id", "name") if name in given}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("mkdocs", reason="pip install 'mcjepa[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = _build(REPOSITORY / "mkdocs.yml", folder)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


def _build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """As `make docs` does; with --quiet a warning would not count."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        [*command, "--site-dir", str(folder)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_a_dead_link_and_a_page_without_a_place_fail_the_build(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install 'mcjepa[docs]'")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[dead](nowhere.md)\n", encoding="utf-8")
    (tmp_path / "docs" / "lost.md").write_text("# Lost\n", encoding="utf-8")
    config = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    del config["plugins"]
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump({**config, "nav": ["index.md"]}), encoding="utf-8")
    done = _build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr and "lost.md" in done.stderr
    assert "--strict --quiet" not in (REPOSITORY / "Makefile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, _Page]:
    """Every page of it by its path."""
    found = {p.relative_to(site).as_posix(): _Page(p.read_text(encoding="utf-8")) for p in site.rglob("*.html")}
    assert len(found) > 25
    return found


def test_reading_the_site_loads_nothing_from_elsewhere(site: Path, pages: dict[str, _Page]) -> None:
    foreign = [f"{name}: {url}" for name, page in pages.items() for url in page.loaded if re.match(r"(\w+:)?//", url)]
    for sheet in site.rglob("*.css"):
        foreign += re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\"']*", sheet.read_text(encoding="utf-8"))
    assert foreign == []


def test_links_and_pictures_of_the_site_lead_somewhere(site: Path, pages: dict[str, _Page]) -> None:
    dead = []
    for name, page in pages.items():
        if name == "404.html":  # its addresses are the server's
            continue
        for url in (*page.linked, *page.loaded):
            path, _, anchor = url.partition("#")
            if re.match(r"\w+:", url):
                continue
            target = ((site / name).parent / path).resolve() if path else site / name
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (anchor and anchor not in _anchors(target, pages, site) | {"__top"}):
                dead.append(f"{name}: {url}")
    assert dead == []


def test_lists_and_tables_of_the_pages_are_shown_as_such(site: Path) -> None:
    """They need an empty line above them here, other than on a code host."""
    wrong = []
    for path in site.rglob("*.html"):
        for paragraph in re.findall(r"<p>(.*?)</p>", path.read_text(encoding="utf-8"), re.DOTALL):
            if re.search(r"^\s*(\* |- |\d+\. |\|.*\|$)", paragraph, re.MULTILINE):
                wrong.append(f"{path.relative_to(site)}: {paragraph[:80]}")
    assert wrong == []


def _anchors(target: Path, pages: dict[str, _Page], site: Path) -> set[str]:
    return pages[target.relative_to(site.resolve()).as_posix()].anchors


def test_the_python_page_shows_what_is_public(site: Path) -> None:
    import mcjepa

    text = (site / "api.html").read_text(encoding="utf-8")
    plain = re.sub(r"<[^>]+>", "", text)
    missing = [name for name in mcjepa.__all__ if name != "__version__" and name not in plain]
    assert missing == []
    assert "Raises" in plain and "estimate_flow" in plain


def test_every_page_is_in_the_navigation() -> None:
    """What a strict build would warn of, without a build."""
    config = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    named = set(re.findall(r"[\w/-]+\.md", str(config["nav"])))
    there = {path.relative_to(REPOSITORY / "docs").as_posix() for path in (REPOSITORY / "docs").rglob("*.md")}
    assert named == there
