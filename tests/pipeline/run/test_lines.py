"""Lines wait in memory while there is no room, and are written in their order when there is; a torn one is ended."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from mcjepa.pipeline.run import lines
from mcjepa.pipeline.run.lines import PatientLines


def fill_disk(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOSPC) -> None:
    """Every write gets half of its bytes down and then fails."""
    write = os.write

    def half(descriptor: int, data: Any) -> int:
        write(descriptor, bytes(data)[: len(data) // 2])
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("mcjepa.pipeline.run.lines.os.write", half)


def test_lines_wait_for_room_in_their_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = PatientLines(tmp_path / "logs" / "a.jsonl", sync=True)
    assert file.append("one")
    with pytest.MonkeyPatch.context() as full:
        fill_disk(full)
        assert not file.append("two") and not file.append("three")
        assert file.path.read_text() == "one\n" and file.waiting == 2
    with caplog.at_level("INFO"):
        assert file.append("four")
    assert file.path.read_text() == "one\ntwo\nthree\nfour\n" and file.waiting == 0
    assert "there is room again" in caplog.text


def test_what_waits_is_bounded_and_what_is_given_up_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lines, "MOST_WAITING", 3)
    file = PatientLines(tmp_path / "a")
    with pytest.MonkeyPatch.context() as full:
        fill_disk(full, errno.EDQUOT)
        for number in range(5):
            file.append(str(number))
    assert file.settle()
    assert file.path.read_text() == "2\n3\n4\n" and "2 lines were given up" in caplog.text


def test_another_fault_is_an_error_and_a_torn_line_is_ended(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"step": 1}\n{"st')
    PatientLines(tmp_path / "a").append('{"step": 2}')
    assert (tmp_path / "a").read_text().splitlines() == ['{"step": 1}', '{"st', '{"step": 2}']
    with pytest.MonkeyPatch.context() as broken:
        fill_disk(broken, errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            PatientLines(tmp_path / "a").append("x")
