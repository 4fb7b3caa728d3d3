"""Parent side of decoding: one child process, used for many inputs, killed and replaced when it fails.

A child that dies on an input (crash, kill from outside) is replaced and the input cut again, CRASH_ATTEMPTS times in
all; one that is silent for too long is killed, and the input tried once more. Decoding is deterministic: what was
delivered before is passed over. What the child reports itself, memory beyond the cap included, is not tried again.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator

from mcjepa.data_prep.code import isolated_environment
from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.decode.cutter import CutSample, DroppedSample
from mcjepa.data_prep.decode.messages import (
    ChildTimeout,
    DecodeFailure,
    MessageReader,
    PipeClosed,
    Unwanted,
    encode_config,
    one_line,
    write_message,
)
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.settings import DatasetConfig

START_TIMEOUT_S = 120.0  # importing the decoder on a loaded machine
STOP_TIMEOUT_S = 2.0
PIPE_BYTES = 1 << 20  # some samples, so that the child need not wait for this process to be given a core
CRASH_ATTEMPTS = 3
TIMEOUT_ATTEMPTS = 2
TAIL_LINES, LINE_CHARACTERS = 3, 200
KEEPS_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
"""Of a child's malloc: pictures' places are used again. Given back and fetched anew for each, up to a quarter of the
time of a photo goes into page faults, in some processes and not in others."""
NO_MEMORY = re.compile(r"bad_alloc|MemoryError|Cannot allocate memory|out of memory", re.IGNORECASE)


class DecodeClient:
    """Cuts inputs in a child process; a context manager that leaves no process behind."""

    def __init__(self, config: DatasetConfig, leakage_index: str = "") -> None:
        """Keep the settings; the child starts with the first input.

        Args:
            config: How to cut.
            leakage_index: File of evaluation frames to guard (`data_prep.filters.leakage`), if there is that filter.
        """
        self._config = config
        self._leakage_index = leakage_index
        self._child: subprocess.Popen[bytes] | None = None
        self._reader: MessageReader | None = None
        self._ready = self._stopped = False
        self._errors: _Tail | None = None

    def __enter__(self) -> DecodeClient:
        """Use as `with DecodeClient(config) as client`."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the child."""
        self.close()

    def cut(self, item: Input) -> Iterator[CutSample | DroppedSample]:
        """Samples of one input, and those that filters dropped. An iterator that is left early costs the child.

        Raises:
            DecodeFailure: undecodable, too slow, too large, or the decoder crashed.
            Unwanted: readable, but nothing in it is wanted.
            DataError: decoding cannot start at all on this machine.
        """
        delivered = crashes = timeouts = 0
        while True:
            try:
                with contextlib.closing(self._cut_once(item)) as pieces:
                    for number, piece in enumerate(pieces):
                        if number == delivered:
                            delivered += 1
                            yield piece
                return
            except ChildTimeout:
                timeouts += 1
                if timeouts == TIMEOUT_ATTEMPTS:
                    reason = f"the decoder was silent for {self._config.timeout_s:g} s (timeout_s) {timeouts} times"
                    raise DecodeFailure(f"{reason} and was killed") from None
            except ChildDied as death:
                if self._stopped:
                    raise
                crashes += 1
                if crashes == CRASH_ATTEMPTS:
                    raise self._failure(crashes, death) from None

    def _failure(self, crashes: int, death: ChildDied) -> Exception:
        """What deaths mean: for the input, or for this machine where no child came so far as to take one."""
        if not death.was_ready:
            return DataError(
                f"the decoder cannot start: it died {crashes} times ({death}); expected it to load its libraries; "
                "repair the installation, or free memory on this machine"
            )
        limit = f"; memory_cap_mib={self._config.memory_cap_mib} was its limit" if NO_MEMORY.search(str(death)) else ""
        return DecodeFailure(f"the decoder died {crashes} times ({death}){limit}")

    def _cut_once(self, item: Input) -> Generator[CutSample | DroppedSample]:
        """One attempt.

        Raises:
            ChildTimeout: the child said nothing for too long; it has been killed.
            ChildDied: the child ended.
        """
        finished = False
        try:
            reader = self._request(item)
            while True:
                header, parts = reader.read(self._config.timeout_s)
                if header["type"] == "end":
                    finished = True
                    _raise_outcome(str(header["outcome"]), str(header["reason"]))
                    return
                if header["type"] == "dropped":
                    yield DroppedSample(tuple(header["frame_index"]), str(header["filter"]), str(header["reason"]))
                else:
                    members = dict(zip(header["suffixes"], parts, strict=True))
                    yield CutSample(members, header["meta"], str(header["decoder"]))
        except (PipeClosed, BrokenPipeError):
            raise ChildDied(self._describe_death(), self._ready) from None
        finally:
            if not finished:
                self._kill()

    def close(self) -> None:
        """Stop the child; the next input would start another."""
        if self._child and self._child.stdin:
            self._child.stdin.close()
            try:
                self._child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
        self._kill()

    def stop(self) -> None:
        """End the child, from another thread than that which cuts; there it raises ChildDied, now and from here on."""
        self._stopped = True
        if child := self._child:
            child.kill()

    def _request(self, item: Input) -> MessageReader:
        """Send an input to the child; starts one where there is none."""
        if self._child is None or self._reader is None:
            self._ready = False
            self._child = _start_child(self._config, self._leakage_index)
            assert self._child.stdout is not None and self._child.stderr is not None
            self._errors = _Tail(self._child.stderr.fileno())
            self._reader = MessageReader(self._child.stdout.fileno())
            self._await_ready(self._reader)
        if self._stopped:
            raise ChildDied("stopped", self._ready)
        assert self._child.stdin is not None and self._errors is not None
        self._errors.forget()
        write_message(self._child.stdin.fileno(), {"input": vars(item)})
        return self._reader

    def _await_ready(self, reader: MessageReader) -> None:
        try:
            header, _ = reader.read(START_TIMEOUT_S)
        except ChildTimeout:
            raise DataError(
                f"the decoder did not start within {START_TIMEOUT_S:g} s; expected a few seconds; try again with fewer "
                "workers on this machine"
            ) from None
        if header["type"] == "refused":
            raise DataError(str(header["reason"]))
        self._ready = True

    def _describe_death(self) -> str:
        """How the child ended, and the last lines that it wrote to its standard error."""
        assert self._child is not None and self._errors is not None
        try:
            code = self._child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        said = self._errors.lines()
        return f"{how}: {' | '.join(said)}" if said else how

    def _kill(self) -> None:
        if self._child is None:
            return
        self._child.kill()
        self._child.wait()
        if self._errors:
            self._errors.join()
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            if pipe:
                pipe.close()
        self._child = self._reader = None


class ChildDied(RuntimeError):
    """The child has ended; the message says how."""

    def __init__(self, how: str, was_ready: bool) -> None:
        """`was_ready`: it had loaded its libraries and taken an input."""
        super().__init__(how)
        self.was_ready = was_ready


class _Tail(threading.Thread):
    """Empties a child's standard error, whatever it writes, and keeps the last lines."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(name="decoder-stderr", daemon=True)
        self._descriptor = descriptor
        self._kept: deque[str] = deque(maxlen=TAIL_LINES)
        self.start()

    def run(self) -> None:
        with open(self._descriptor, encoding="utf-8", errors="replace", closefd=False) as file:
            while line := file.readline(PIPE_BYTES):
                if text := one_line(line)[:LINE_CHARACTERS]:
                    self._kept.append(text)

    def forget(self) -> None:
        """Pass over what was written so far: it was about another input."""
        self._kept.clear()

    def lines(self) -> list[str]:
        """The last lines; of a child that has ended, all have been read."""
        self.join(STOP_TIMEOUT_S)
        return list(self._kept)


def _raise_outcome(outcome: str, reason: str) -> None:
    if outcome == "quarantined":
        raise DecodeFailure(reason)
    if outcome == "filtered":
        raise Unwanted(reason)


def _start_child(config: DatasetConfig, leakage_index: str) -> subprocess.Popen[bytes]:
    """Start a child that finds this very package, with one thread per library and few allocation arenas."""
    environment = {**isolated_environment(), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", **KEEPS_FREED_MEMORY}
    module = "mcjepa.data_prep.decode.child"
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, str(os.getpid()), encode_config(config), leakage_index],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        bufsize=0,
        pipesize=PIPE_BYTES,
    )
