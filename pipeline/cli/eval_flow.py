"""`mcjepa eval flow`: optical flow against ground truth, and archives for the benchmarks' test servers."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcjepa.evals.record import publish
from mcjepa.pipeline.cli.evaluate import OK, PARTIAL, require_weights, shown_events, take_optional_weights
from mcjepa.pipeline.errors import UsageError

if TYPE_CHECKING:
    from mcjepa.evals.cards import Score
    from mcjepa.evals.flow.methods import Entrant
    from mcjepa.evals.settings import EvalConfig

GENERAL = ("device", "threads")
"""Settings of all evaluations that this command takes too."""

MOST_LINES = 10


def evaluate_flow(arguments: argparse.Namespace) -> int:
    """Scores weights, estimates or baselines on the sets that the command line names, or writes a submission."""
    _sort_words(arguments)
    names = _set_names(arguments.set, bool(arguments.submission))
    config = _settings(arguments, names)
    _require_source(arguments)
    if arguments.submission:
        return _submit(arguments, names, config)
    scores = _score(arguments, config)
    if arguments.json:
        print(json.dumps({score.name: _plain(score) for score in scores}))
    else:
        for score in scores:
            print(score_text(score))
    return OK if all(score.card.complete for score in scores) else PARTIAL


def _sort_words(arguments: argparse.Namespace) -> None:
    """Puts words where they belong: the parser gives `--baselines` the word behind it, WEIGHTS the first free one."""
    take_optional_weights(arguments)
    taken = arguments.baselines
    if taken and "=" in taken:
        arguments.baselines, arguments.overrides = "all", [*arguments.overrides, taken]
    elif taken and not arguments.weights and Path(taken).is_dir():
        arguments.baselines, arguments.weights = "all", taken


def _set_names(text: str, for_submission: bool) -> list[str]:
    from mcjepa.data_prep.corpora import FLOW_SCANS, FLOW_TEST_SETS

    known: Sequence[str] = sorted(FLOW_TEST_SETS if for_submission else FLOW_SCANS)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name in known:
            continue
        if not for_submission and name in FLOW_TEST_SETS:
            raise UsageError(f"--set {name} has no ground truth to score; pass --submission FILE.zip for its archive")
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]}?" if near else "choose among those"
        raise UsageError(f"--set has no flow set {name!r}; expected {', '.join(known)}; {advice}")
    if not names or len(set(names)) < len(names):
        raise UsageError(f"--set is {text!r}; expected names, each once, with commas between them; correct it")
    if for_submission and len(names) > 1:
        raise UsageError(f"--submission makes the archive of one set, --set names {len(names)}; name one")
    return names


def _settings(arguments: argparse.Namespace, names: Sequence[str]) -> EvalConfig:
    from mcjepa.evals.flow.settings import BASELINES, FlowEvalConfig
    from mcjepa.evals.settings import EvalConfig
    from mcjepa.pipeline.recipe.files import apply_overrides, validate

    content = apply_overrides({}, arguments.overrides)
    general = {name: content.pop(name) for name in GENERAL if name in content}
    content["sets"] = dict.fromkeys(names, arguments.data)
    if arguments.baselines is not None:
        chosen = [name for name in arguments.baselines.split(",") if name]
        content["baselines"] = list(BASELINES) if chosen == ["all"] else chosen
    flow = validate(FlowEvalConfig, content, "eval flow")
    return validate(EvalConfig, {"flow": flow, **general}, "eval flow")


def _require_source(arguments: argparse.Namespace) -> None:
    if arguments.weights and arguments.estimates:
        raise UsageError("both WEIGHTS and --estimates are given; expected one of them; leave one out")
    if arguments.weights:
        require_weights(arguments.weights)
    if arguments.baselines and arguments.submission:
        raise UsageError(
            "--submission takes the flow of WEIGHTS or --estimates; expected one of them; leave --baselines out"
        )
    if not (arguments.weights or arguments.estimates or arguments.baselines or arguments.submission):
        raise UsageError("nothing to score; expected WEIGHTS, --estimates DIR or --baselines; pass one")


def _entrant(arguments: argparse.Namespace, config: EvalConfig) -> Entrant | None:
    from mcjepa.evals.flow.methods import Entrant

    if arguments.estimates:
        folder = Path(arguments.estimates)
        return Entrant(name=f"estimates in {folder.name}", estimates=folder)
    if not arguments.weights:
        return None
    from mcjepa.evals.subject import load_subject

    return Entrant.of(load_subject(arguments.weights, config.device, config.seed))


def _score(arguments: argparse.Namespace, config: EvalConfig) -> list[Score]:
    from mcjepa.evals.cards import write_scores
    from mcjepa.evals.flow.score import score_flow_sets
    from mcjepa.evals.progress import torch_threads

    assert config.flow is not None
    with shown_events() as show, torch_threads(config.threads):
        scores = score_flow_sets(_entrant(arguments, config), config.flow, Path(arguments.out), show)
    write_scores(scores, Path(arguments.out))
    publish(arguments, scores)
    return scores


def _submit(arguments: argparse.Namespace, names: Sequence[str], config: EvalConfig) -> int:
    from mcjepa.data_prep.corpora import FLOW_TEST_SETS
    from mcjepa.data_prep.corpora.flow.places import find_set_folder
    from mcjepa.evals.flow.estimates import EstimateFolder
    from mcjepa.evals.flow.methods import flow_methods
    from mcjepa.evals.flow.submission import check_submission, require_whole, write_submission
    from mcjepa.evals.progress import torch_threads

    assert config.flow is not None
    name, path = names[0], Path(arguments.submission)
    root = find_set_folder(arguments.data, name)
    pairs = FLOW_TEST_SETS[name](root)
    require_whole(name, pairs)
    entrant = _entrant(arguments, config)
    with shown_events() as show, torch_threads(config.threads):
        if entrant is None:
            check_submission(path, name, pairs, show)
        else:
            estimates = EstimateFolder(entrant.estimates, name, root, pairs, alone=True) if entrant.estimates else None
            methods = flow_methods(entrant, (), config.flow.resize, estimates)
            write_submission(path, name, pairs, methods, config.flow.workers, show)
    record = {"submission": str(path), "set": name, "files": len(pairs), "bytes": path.stat().st_size}
    text = f"{path}: {len(pairs)} flows for {name}, {path.stat().st_size / 1e6:.1f} MB, read again and checked"
    print(json.dumps(record) if arguments.json else text)
    return OK


def score_text(score: Score) -> str:
    """A score for people: metrics as rows, the entrant and the baselines as columns, and what it lacks."""
    card = score.card
    own = [name for name in score.metrics if not any(name.endswith(f"_{rival}") for rival in score.rivals)]
    columns = (["model"] if own else []) + [rival.replace("_", "-") for rival in score.rivals]
    keys = own or [name.removesuffix(f"_{score.rivals[0]}") for name in score.metrics if _is_of(name, score.rivals[0])]
    lines = [f"{score.name}: {card.frames} pairs ({card.split}), {card.resolution}"]
    lines.append(f"  {'':<20}" + "".join(f"{column:>15}" for column in columns))
    for key in keys:
        names = ([key] if own else []) + [f"{key}_{rival}" for rival in score.rivals]
        lines.append(f"  {key:<20}" + "".join(f"{score.metrics[name]:>15.4f}" for name in names))
    if card.failed:
        lines.append("  INCOMPLETE; missing or not scored:")
        lines += [f"    {line}" for line in card.failed[:MOST_LINES]]
        lines += [f"    … {len(card.failed) - MOST_LINES} more"] if len(card.failed) > MOST_LINES else []
    return "\n".join(lines)


def _is_of(name: str, rival: str) -> bool:
    return name.endswith(f"_{rival}")


def _plain(score: Score) -> dict[str, Any]:
    from mcjepa.evals.cards import finite_or_none

    metrics = {name: finite_or_none(value) for name, value in score.metrics.items()}
    failed = list(score.card.failed)
    return {**metrics, "pairs": score.card.frames, "complete": score.card.complete, "failed": failed}
