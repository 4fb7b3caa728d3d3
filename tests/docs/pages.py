"""Reads the Markdown pages of the repository: code blocks, inline code, links, headings."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^ *(`{3,})\s*([\w-]*)")
INLINE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")
RUN_MARK = "<!-- run -->"
AFTER_QUICKSTART = "<!-- run after quickstart -->"
"""Above a code block, or a line above a table whose first column holds commands."""


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    page: str
    line: int
    """Line of its fence, from 1."""
    language: str
    text: str
    mark: str
    """The line above it."""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Span:
    """A piece of inline code."""

    page: str
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def page_paths() -> list[Path]:
    """README.md, the other pages at the top, all of docs/ and the measurements."""
    top = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
    return [*top, *sorted((REPOSITORY / "docs").rglob("*.md"))]


def name_of(path: Path) -> str:
    """A page's path from the repository's root."""
    return path.relative_to(REPOSITORY).as_posix()


def blocks(page: str, text: str) -> Iterator[Block]:
    """The fenced code blocks of a page, without the indentation of their fence."""
    lines = text.split("\n")
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        if not opening:
            number += 1
            continue
        start, indent = number, len(lines[number]) - len(lines[number].lstrip())
        number += 1
        while number < len(lines) and lines[number].strip() != opening[1]:
            number += 1
        content = "\n".join(line[indent:] for line in lines[start + 1 : number])
        yield Block(page, start + 1, opening[2], content, lines[start - 1].strip() if start else "")
        number += 1


def prose(text: str) -> str:
    """The page without its code blocks; lines keep their numbers."""
    kept: list[str] = []
    fence = ""
    for line in text.split("\n"):
        match = FENCE.match(line)
        if match and not fence:
            fence, line = match[1], ""
        elif fence:
            fence, line = ("", "") if line.strip() == fence else (fence, "")
        kept.append(line)
    return "\n".join(kept)


def spans(page: str, text: str) -> Iterator[Span]:
    """The inline code of a page; in tables an escaped bar is a bar, and a line break is a space."""
    body = prose(text)
    for match in INLINE.finditer(body):
        content = " ".join(match[2].replace("\\|", "|").split())
        if "\n\n" not in match[2]:
            yield Span(page, body.count("\n", 0, match.start()) + 1, content)


def links(text: str) -> Iterator[tuple[int, str]]:
    """Line and target of every link and picture of a page."""
    body = INLINE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), prose(text))
    for match in LINK.finditer(body):
        yield body.count("\n", 0, match.start()) + 1, match[1]


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings get."""
    headings = re.findall(r"^#{1,6} +(.+?) *#*$", prose(text), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", re.sub(r"`([^`]*)`", r"\1", heading)).strip().lower() for heading in headings)
    return {re.sub(r"[\s-]+", "-", heading) for heading in plain}


def commands_of_tables(text: str) -> list[str]:
    """The first inline code of every row of the tables that are marked to run after a quickstart."""
    found: list[str] = []
    for part in text.split(AFTER_QUICKSTART)[1:]:
        lines = part.strip("\n").split("\n")
        table = list(itertools.takewhile(lambda line: line.startswith("|"), lines))
        found += [match[1] for row in table[2:] if (match := re.match(r"\| `([^`]+)`", row))]
    return found
