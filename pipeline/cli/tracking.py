"""`mcjepa tracking sync`: delivers what a run has left in its spool."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.recipe import load_recipe, required

PARTIAL = 4
BUSY_WAIT_S = 60.0


def tracking_sync(arguments: argparse.Namespace) -> int:
    """Delivers the spool of a run folder or of a recipe's run; 0 when it is empty, 4 when something is left."""
    from mcjepa.pipeline.tracking.courier import Courier
    from mcjepa.pipeline.tracking.spool import FOLDER, Spool, SpoolBusy

    run = _run_folder(arguments)
    if not (run / FOLDER / "run.json").is_file():
        raise UsageError(
            f"{run} has no {FOLDER}/run.json, expected a run folder that was trained; name RUN or its recipe"
        )
    spool = Spool(run)
    courier, done, reason = Courier(spool, run), 0, ""
    waiting = len(spool.pending())
    deadline = time.monotonic() + BUSY_WAIT_S
    while True:
        try:
            done = courier.deliver()
        except SpoolBusy as error:
            if time.monotonic() < deadline and spool.pending():
                time.sleep(0.5)  # the run delivers, or another sync
                continue
            reason = str(error)
        except Exception as error:  # whatever a client raises for a server that is away
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        break
    left = len(spool.pending())
    if arguments.json:
        print(json.dumps({"run": str(run), "run_id": courier.run_id, "delivered": waiting - left, "left": left}))
    else:
        print(f"{max(done, waiting - left)} records delivered, {left} left in {spool.folder}")
    if left:
        print(f"mcjepa: MLflow at {spool.address()['uri']} does not take them: {reason}", file=sys.stderr)
    return PARTIAL if left else 0


def _run_folder(arguments: argparse.Namespace) -> Path:
    folder = Path(arguments.run)
    if folder.is_dir():
        return folder
    recipe, _ = load_recipe(arguments.run, arguments.overrides)
    return Path(required(recipe.train, "train", recipe).run)
