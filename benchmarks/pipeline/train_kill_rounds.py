"""Kill -9 of a random rank at a random moment, also during a save and an upload: are the losses the same bit for bit?

    python -m benchmarks.train_kill_rounds [--full]

Two ranks on CPUs in fp32, ZeRO 2; by default one round, with --full ten, the moments in turn: during a step, during a
save, during an upload to a real S3 server. The last line is JSON; `ratio` is the part of the rounds whose losses equal
those of an uninterrupted run in every bit. The bar is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import uuid
from pathlib import Path

from tests.rounds.train_kills import MOMENTS, KillRound, TrainingRun, make_recipe, run_round
from tests.servers.seaweed import BUCKET, running_seaweed


def main() -> None:
    """Run the rounds and print what each has shown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="ten rounds")
    rounds = 10 if parser.parse_args().full else 1
    started = time.monotonic()
    right = hit = 0
    with tempfile.TemporaryDirectory() as name, running_seaweed() as server:
        os.environ.update(server.variables)
        folder = Path(name)
        whole = TrainingRun(make_recipe(folder), f"{name}/whole", folder / "whole-files")
        if whole.finish() != 0:
            raise SystemExit(whole.log.read_text())
        expected = whole.losses()
        for seed in range(rounds):
            moment = MOMENTS[seed % len(MOMENTS)]
            location = f"s3://{BUCKET}/{uuid.uuid4().hex}" if moment == "upload" else f"{name}/run-{seed}"
            shown = run_round(seed, TrainingRun(whole.recipe, location, folder / f"files-{seed}"), moment)
            same = not shown.problem and shown.losses == expected
            right, hit = right + same, hit + (shown.killed_rank >= 0)
            print(_in_words(shown, same), flush=True)
    figures = {"rounds": rounds, "same": right, "killed": hit, "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps({"benchmark": "train_kill_rounds", "ratio": right / rounds, **figures}))


def _in_words(shown: KillRound, same: bool) -> str:
    outcome = "same losses" if same else f"OTHER LOSSES {shown.problem}"
    return f"seed {shown.seed:2d}  during {shown.moment:<6}  rank {shown.killed_rank}  starts {shown.starts}: {outcome}"


if __name__ == "__main__":
    main()
