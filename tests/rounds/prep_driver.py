"""A preparation job as a process that can be killed: `python -m tests.rounds.prep_driver ADDRESS CORPUS ROOT`.

ADDRESS is that of a Ray, `private` for one of its own, or empty: small as it is, without Ray.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path

from mcjepa.data_prep.job import ProgressEvent, run_prep
from mcjepa.data_prep.settings import PrepConfig
from tests.rounds.kill_rounds import dataset


def show(event: ProgressEvent) -> None:
    """One line an event."""
    print(event.stage, event.done, event.total, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
    address, corpus, root = sys.argv[1:]
    config = PrepConfig(root=root, datasets={"clips": dataset(Path(corpus))}, workers=2)
    if address == "private":
        config = replace(config, workers_by="ray")
    elif address:
        config = replace(config, ray_address=address)
    run_prep(config, on_event=show)
