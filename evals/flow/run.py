"""The flow sets that the settings name, scored one after the other."""

from __future__ import annotations

from pathlib import Path

from mcjepa.data_prep.corpora import FLOW_SCANS
from mcjepa.data_prep.corpora.flow.places import find_set_folder
from mcjepa.evals.cards import Score
from mcjepa.evals.flow.methods import Entrant
from mcjepa.evals.flow.score import FlowSet, score_flow
from mcjepa.evals.flow.settings import FlowEvalConfig
from mcjepa.evals.progress import OnEvent, silent
from mcjepa.evals.sets import set_reader


def score_flow_sets(
    entrant: Entrant | None, config: FlowEvalConfig, out: Path, on_event: OnEvent = silent
) -> list[Score]:
    """Scores every flow set of the settings; all their folders are looked up before the first is scored.

    Raises:
        DataError: a set is unknown, is not where it should be, or has nothing that can be scored.
    """
    scans = {name: set_reader(FLOW_SCANS, name, "flow.sets") for name in config.sets}
    roots = {name: find_set_folder(place, name) for name, place in config.sets.items()}
    alone = len(roots) == 1
    sets = [
        FlowSet(name=name, root=root, scan=scans[name](root, subset=config.subset), alone=alone)
        for name, root in roots.items()
    ]
    return [score_flow(entrant, flow_set, config, out / "flow" / flow_set.name, on_event) for flow_set in sets]
