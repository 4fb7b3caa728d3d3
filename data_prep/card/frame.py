"""The frame of our HTML pages: one document, one stylesheet, one content security policy.

A page is a template `page.html.j2` that extends `frame.html.j2` and says how each of its sections looks. Every text is
escaped; only `Markup` (our own SVG) is not. A page loads nothing from anywhere and runs nothing but the script that it
was written with, whatever text ends up in it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """One part of a page; a page leaves out those without content."""

    anchor: str
    """What links to it name."""
    heading: str
    kind: str
    """How the page's template shows it."""
    content: Any
    """What that needs."""


@dataclass(frozen=True)
class InlinePicture:
    """A picture inside of the page; with its size, so that what follows has its place before it is decoded."""

    type: str
    """Such as jpeg."""
    data: bytes
    width: int
    height: int
    text: str = ""
    """What it shows."""

    @property
    def url(self) -> str:
        """As a data URL."""
        return f"data:image/{self.type};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: Any
    numeric: bool = False
    strong: bool = False
    unit: str = ""
    """In small letters behind the text."""
    note: str = ""
    """Shown when pointed at; the text is then in brackets: it is not to be compared."""


@dataclass(frozen=True)
class Table:
    """Rows of cells below headings; it scrolls in a box of its own."""

    head: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    more: str = ""
    """What is said below of rows that are left out."""


def render_page(
    folder: Path,
    title: str,
    summary: str,
    sections: Sequence[Section],
    *,
    script: str = "",
    filters: Mapping[str, Callable[..., str]] | None = None,
) -> str:
    """The whole document.

    Args:
        folder: where the page's own `page.html.j2` lies.
        title: heading and window title.
        summary: sentence below it.
        sections: in their order; those without content are left out.
        script: the one script that the page may run.
        filters: for the template.
    """
    loader = FileSystemLoader([folder, HERE])
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters.update(filters or {})
    return pages.get_template("page.html.j2").render(
        title=title,
        summary=summary,
        sections=[section for section in sections if section.content],
        policy=Markup(_policy(script)),
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
    )


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"'sha256-{digest}'" if script else "'none'"
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
