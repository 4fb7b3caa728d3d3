"""Kill -9 of a decode child, a Ray worker, a raylet and the driver at random times: is the dataset the same?

    python -m benchmarks.prep_kill_rounds [--full]

Two Ray nodes on this machine; by default two rounds (as many as fit into 50 s), with --full twenty, five a victim,
all seeded. The last line is JSON; `ratio` is the part of the rounds whose dataset id equals the undisturbed one
and whose audit proves conservation. The bar is 1.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from mcjepa.data_prep.job import run_prep
from mcjepa.data_prep.settings import PrepConfig
from tests.rounds.kill_rounds import Round, TwoNodes, dataset, make_corpus, run_round


def main() -> None:
    """Run the rounds and print what each has shown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="twenty rounds")
    rounds = 20 if parser.parse_args().full else 2
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder) / "corpus")
        config = PrepConfig(root=f"{folder}/whole", datasets={"clips": dataset(corpus)}, workers=2)
        whole = run_prep(config).datasets[0].dataset_id
        right = killed = 0
        with TwoNodes() as nodes:
            for seed in range(rounds):
                shown = run_round(seed, nodes, corpus, Path(folder) / str(seed))
                same = shown.dataset_id == whole and not shown.problems
                right += same
                killed += shown.killed
                print(_in_words(shown, same), flush=True)
    figures = {"rounds": rounds, "same": right, "killed": killed, "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps({"benchmark": "prep_kill_rounds", "ratio": right / rounds, **figures}))


def _in_words(shown: Round, same: bool) -> str:
    outcome = "same" if same else f"ANOTHER DATASET {shown.problems}"
    when = f"after {shown.after_shards:2d} shards, {shown.delay_s:.2f} s"
    return (
        f"seed {shown.seed:2d}  {shown.victim:<8} {when}  killed {shown.killed!s:<5}  starts {shown.starts}: {outcome}"
    )


if __name__ == "__main__":
    main()
