"""The decode child: reads inputs to cut from its standard input, writes samples to its standard output.

    python -m data_prep.decode.child PARENT_PID DATASET_CONFIG_JSON

It may crash, hang or outgrow its memory: `data_prep.decode.client` kills it and starts another.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import sys
from pathlib import Path

import cv2

from data_prep.config import CorpusConfig, DatasetConfig
from data_prep.corpora.items import Input
from data_prep.decode.cutter import cut_input
from data_prep.decode.failures import DecodeFailure, Unwanted
from data_prep.decode.messages import Closed, MessageReader, write_message
from data_prep.errors import DataError
from data_prep.process import end_with_parent

MIB = 1 << 20
REASON_CHARACTERS = 500
CLOCK_AND_SOURCE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")


def main(parent_pid: int, config_json: str) -> None:
    """Serve inputs until the parent closes the pipe."""
    end_with_parent(parent_pid)
    cv2.setNumThreads(1)
    config = decode_config(config_json)
    # Decoders print to the standard output: it keeps its number but leads nowhere from here on.
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _import_decoder(config)
    _cap_memory(config.memory_cap_mib)
    reader = MessageReader(0)
    while True:
        try:
            request, _ = reader.read()
        except Closed:
            return
        _serve(request, config, out)


def encode_config(config: DatasetConfig) -> str:
    """A dataset's settings as JSON, for the child's command line."""
    return json.dumps(dataclasses.asdict(config))


def decode_config(config_json: str) -> DatasetConfig:
    """The settings that `encode_config` wrote."""
    content = json.loads(config_json)
    corpora = tuple(CorpusConfig(**c) for c in content.pop("corpora"))
    return DatasetConfig(corpora=corpora, **content)


def _serve(request: dict[str, object], config: DatasetConfig, out: int) -> None:
    """Answer one input: its samples, then one closing message with the outcome."""
    members = request["members"]
    assert isinstance(members, list)
    item = Input(str(request["name"]), str(request["uri"]), request["kind"], tuple(members))  # type: ignore[arg-type]
    try:
        for sample in cut_input(item, config):
            write_message(out, {"type": "sample", "meta": sample.meta}, sample.frames)
    except Unwanted as refusal:
        write_message(out, {"type": "end", "outcome": "filtered", "reason": str(refusal)})
    except MemoryError:
        reason = f"needs more than the decoder's memory cap of {config.memory_cap_mib} MiB"
        write_message(out, {"type": "end", "outcome": "quarantined", "reason": reason})
    except BrokenPipeError:
        raise
    except Exception as error:  # decoders raise many kinds; each becomes the reason of the quarantine
        write_message(out, {"type": "end", "outcome": "quarantined", "reason": describe_error(error)})
    else:
        write_message(out, {"type": "end", "outcome": "ok", "reason": ""})


def describe_error(error: Exception) -> str:
    """An exception as one line that is the same on every run: decord puts the time of day into its own."""
    text = CLOCK_AND_SOURCE.sub("", str(error))
    name = "" if isinstance(error, DecodeFailure | DataError) else f"{type(error).__name__}: "
    return " ".join(f"{name}{text}".split())[:REASON_CHARACTERS]


def _import_decoder(config: DatasetConfig) -> None:
    """Load the decoder's libraries before memory is capped."""
    __import__("decord" if config.decoder == "decord" else "av")


def _cap_memory(cap_mib: int) -> None:
    """Limit the address space to its present size and `cap_mib` more (Linux only)."""
    status = Path("/proc/self/statm")
    if status.is_file():
        present = int(status.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (present + cap_mib * MIB,) * 2)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
