"""The decode child: reads inputs to cut from its standard input, writes samples to its standard output.

    python -m mcjepa.data_prep.decode.child PARENT_PID DATASET_CONFIG_JSON LEAKAGE_INDEX

It may crash, hang or outgrow its memory: `data_prep.decode.client` kills it and starts another. Its first message
is `ready`, or `refused` with the reason why no input can be cut here.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
from PIL import Image

from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.decode.cutter import CutSample, cut_input
from mcjepa.data_prep.decode.messages import (
    DecodeFailure,
    MessageReader,
    PipeClosed,
    Unwanted,
    decode_config,
    input_from_message,
    message_pieces,
    one_line,
    write_message,
    write_pieces,
)
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.process import end_with_parent
from mcjepa.data_prep.settings import DatasetConfig, DecoderName

if TYPE_CHECKING:
    from mcjepa.data_prep.filters.judge import SampleJudge

MIB = 1 << 20
REASON_CHARACTERS = 500
HELD_BYTES, HELD_S = 1 << 18, 0.2
"""Most of an input's samples that wait for the next ones, and how long."""

JudgeMaker = Callable[[], "SampleJudge | None"]


def main(parent_pid: int, config_json: str, leakage_index: str) -> None:
    """Serve inputs until the parent closes the pipe."""
    end_with_parent(parent_pid)
    cv2.setNumThreads(1)
    Image.MAX_IMAGE_PIXELS = None  # max_megapixels is the limit, and has its own words
    config = decode_config(config_json)
    # Decoders print to the standard output: it keeps its number but leads nowhere from here on.
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        Image.init()
        _import_decoder(config.decoder)
        make_judge = _judge_maker(config, leakage_index)
    except DataError as error:
        write_message(out, {"type": "refused", "reason": str(error)})
        return
    _cap_memory(config.memory_cap_mib)
    write_message(out, {"type": "ready"})
    reader = MessageReader(0)
    while True:
        try:
            request, _ = reader.read()
        except PipeClosed:
            return
        _serve(input_from_message(request["input"]), config, make_judge(), out)


def _import_decoder(decoder: DecoderName) -> None:
    """Load a decoder's libraries, and PyAV, which reads containers.

    Raises:
        DataError: they are not installed, or do not load.
    """
    import av  # noqa: F401

    if decoder == "decord":
        import decord  # noqa: F401
    elif decoder == "torchcodec":
        try:
            import torchcodec.decoders  # noqa: F401
        except (ImportError, OSError, RuntimeError) as error:
            cause = str(error).strip().partition("\n")[0]
            raise DataError(
                f"torchcodec does not load ({cause}); expected the extra mcjepa[torchcodec] and the system's FFmpeg "
                "libraries; run `pip install 'mcjepa[torchcodec]'` and `apt install ffmpeg`, or set decoder=decord"
            ) from error


def _judge_maker(config: DatasetConfig, leakage_index: str) -> JudgeMaker:
    """What makes a new judge for each input; the filters' libraries and the index are loaded now."""
    modes = {getattr(config.filters, field.name).mode for field in dataclasses.fields(config.filters)}
    if modes == {"off"}:
        return lambda: None
    from mcjepa.data_prep.filters.judge import SampleJudge
    from mcjepa.data_prep.filters.leakage import LeakageIndex

    index = LeakageIndex.load(leakage_index) if leakage_index else None
    SampleJudge(config.filters, index)
    return lambda: SampleJudge(config.filters, index)


def _serve(item: Input, config: DatasetConfig, judge: SampleJudge | None, out: int) -> None:
    """Answer one input: its samples, then one closing message with the outcome.

    What is small and comes quickly goes out together, for each writing wakes the parent; a picture's one sample goes
    with the closing message.
    """
    outcome, reason, held = "ok", "", list[bytes]()
    since_s = time.monotonic()
    try:
        for piece in cut_input(item, config, judge):
            if isinstance(piece, CutSample):
                header = {
                    "type": "sample",
                    "suffixes": list(piece.members),
                    "meta": piece.meta,
                    "decoder": piece.decoder,
                }
                held += message_pieces(header, list(piece.members.values()))
            else:
                held += message_pieces({"type": "dropped", **dataclasses.asdict(piece)})
            if sum(map(len, held)) > HELD_BYTES or time.monotonic() - since_s > HELD_S:
                write_pieces(out, held)
                held.clear()
                since_s = time.monotonic()
    except Unwanted as refusal:
        outcome, reason = "filtered", str(refusal)
    except MemoryError:
        reason = f"needs more than the decoder's memory cap of {config.memory_cap_mib} MiB"
        outcome = "quarantined"
    except BrokenPipeError:
        raise
    except Exception as error:  # decoders raise many kinds; each becomes the reason of the quarantine
        outcome, reason = "quarantined", describe_error(error)
    write_pieces(out, [*held, *message_pieces({"type": "end", "outcome": outcome, "reason": reason})])


def describe_error(error: Exception) -> str:
    """An exception as one line that is the same on every run: no time of day (decord), no address (Pillow)."""
    name = "" if isinstance(error, DecodeFailure | DataError) else f"{type(error).__name__}: "
    return one_line(f"{name}{error}")[:REASON_CHARACTERS]


def _cap_memory(cap_mib: int) -> None:
    """Limit the address space to its present size and `cap_mib` more (Linux only)."""
    status = Path("/proc/self/statm")
    if status.is_file():
        present = int(status.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (present + cap_mib * MIB,) * 2)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
