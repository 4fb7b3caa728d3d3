"""Findings of a preflight: what was found, what is expected, what to change; and their table for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "warning", "error"]
WIDTH = 116
TOPIC_WIDTH = 15


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    """What it is about, one or two words."""
    severity: Severity
    """`error`: the run cannot work as it is, and is refused; `warning`: it would work badly, or is not known."""
    found: str
    expected: str = ""
    """Only where it is not ok."""
    fix: str = ""
    """What to change; only where it is not ok."""

    def __str__(self) -> str:
        words = [self.found, f"expected {self.expected}" if self.expected else "", self.fix]
        return f"{self.topic}: " + "; ".join(word for word in words if word)


def errors_of(findings: Iterable[Finding]) -> list[Finding]:
    """Those that refuse the run."""
    return [finding for finding in findings if finding.severity == "error"]


def findings_table(findings: Sequence[Finding]) -> list[str]:
    """Aligned lines, one finding after the other; what is not ok has its advice below it.

    >>> print(*table([Finding("lanes", "error", "6 ranks, 8 lanes", "a divisor of 8", "start 4")]), sep="\\n")
    ERROR   lanes           6 ranks, 8 lanes
                            expected a divisor of 8; start 4
    """
    indent = " " * (8 + TOPIC_WIDTH + 1)
    lines = []
    for finding in findings:
        mark = finding.severity if finding.severity == "ok" else finding.severity.upper()
        head = f"{mark:<8}{finding.topic:<{TOPIC_WIDTH}} "
        lines += textwrap.wrap(finding.found, WIDTH, initial_indent=head, subsequent_indent=indent)
        advice = "; ".join(w for w in (f"expected {finding.expected}" if finding.expected else "", finding.fix) if w)
        if advice:
            lines += textwrap.wrap(advice, WIDTH, initial_indent=indent, subsequent_indent=indent)
    return lines


def readable_bytes(count: float) -> str:
    """A number of bytes for people.

    >>> readable_bytes(1536), readable_bytes(3 << 30)
    ('1.5 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"


def readable_seconds(seconds: float) -> str:
    """A duration for people.

    >>> readable_seconds(42), readable_seconds(5400), readable_seconds(200000)
    ('42 s', '1.5 h', '2.3 days')
    """
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
