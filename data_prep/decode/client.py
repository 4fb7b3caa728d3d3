"""Parent side of decoding: one child process, used for many inputs, killed and replaced when it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep.config import DatasetConfig
from data_prep.corpora.items import Input
from data_prep.decode.child import encode_config
from data_prep.decode.cutter import CutSample
from data_prep.decode.failures import DecodeFailure, Unwanted
from data_prep.decode.messages import Closed, MessageReader, Silence, write_message

START_TIMEOUT_S = 60.0  # on top of the first input's time: importing the decoder on a loaded machine
STOP_TIMEOUT_S = 2.0


class DecodeClient:
    """Cuts inputs in a child process; a context manager that leaves no process behind."""

    def __init__(self, config: DatasetConfig) -> None:
        """Keep the settings; the child starts with the first input."""
        self._config = config
        self._child: subprocess.Popen[bytes] | None = None
        self._reader: MessageReader | None = None

    def __enter__(self) -> DecodeClient:
        """Use as `with DecodeClient(config) as client`."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the child."""
        self.close()

    def cut(self, item: Input) -> Iterator[CutSample]:
        """Samples of one input. An iterator that is left early costs the child.

        Raises:
            DecodeFailure: undecodable, too slow, too large, or the decoder crashed.
            Unwanted: readable, but nothing in it is wanted.
        """
        finished = False
        silence_s = self._config.timeout_s + (0 if self._child else START_TIMEOUT_S)
        try:
            self._request(item)
            assert self._reader is not None
            while True:
                header, parts = self._reader.read(silence_s)
                silence_s = self._config.timeout_s
                if header["type"] == "end":
                    finished = True
                    _raise_outcome(str(header["outcome"]), str(header["reason"]))
                    return
                yield CutSample(tuple(parts), header["meta"])
        except Silence:
            raise DecodeFailure(f"the decoder was silent for {silence_s:g} s (timeout_s) and was killed") from None
        except (Closed, BrokenPipeError):
            raise DecodeFailure(self._describe_death()) from None
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

    def _request(self, item: Input) -> None:
        if self._child is None:
            self._child = _start_child(self._config)
            assert self._child.stdout is not None
            self._reader = MessageReader(self._child.stdout.fileno())
        assert self._child.stdin is not None
        request = {"name": item.name, "uri": item.uri, "kind": item.kind, "members": item.members}
        write_message(self._child.stdin.fileno(), request)

    def _describe_death(self) -> str:
        code = self._child.wait() if self._child else 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the decoder died ({how}); memory_cap_mib={self._config.memory_cap_mib} was its limit"

    def _kill(self) -> None:
        if self._child is None:
            return
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe:
                pipe.close()
        self._child = self._reader = None


def _raise_outcome(outcome: str, reason: str) -> None:
    if outcome == "quarantined":
        raise DecodeFailure(reason)
    if outcome == "filtered":
        raise Unwanted(reason)


def _start_child(config: DatasetConfig) -> subprocess.Popen[bytes]:
    """Start a child that finds this very package, with one thread a library and few allocation arenas."""
    package_root = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    command = [sys.executable, "-m", "data_prep.decode.child", str(os.getpid()), encode_config(config)]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        bufsize=0,
    )
