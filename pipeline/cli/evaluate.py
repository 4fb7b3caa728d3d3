"""`mcjepa eval`: everything of a recipe, one benchmark without a recipe, and evaluations side by side."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcjepa.pipeline.cli.output import StageProgress, print_next
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.exits import OK, PARTIAL
from mcjepa.pipeline.recipe.recipe import load_recipe

if TYPE_CHECKING:
    from mcjepa.evals.cards import Score
    from mcjepa.evals.progress import OnEvent
    from mcjepa.evals.report.comparison import ComparedScore, Difference
    from mcjepa.evals.settings import EvalConfig
    from mcjepa.pipeline.stages.benchmarks import Results

HEADLINES = {
    "flow": ("epe", "epe_matched", "epe_unmatched", "fl_all"),
    "probe": ("miou", "pixel_accuracy"),
    "finetune": ("miou", "pixel_accuracy"),
    "vos": ("jf", "j_mean", "f_mean"),
}
"""Metrics that a summary shows, by kind of score."""
PER_CLASS = re.compile(r"iou_\w+")
MOST_HEADLINES = 4
MOST_NAMED = 5
"""Items of an incomplete score that are named on standard error."""
MOST_LINES = 10
"""The same in a table of flow scores."""


def everything(arguments: argparse.Namespace) -> int:
    """`mcjepa eval all`: 4 where a score is incomplete or weights were removed before they were scored."""
    recipe, plain = load_recipe(arguments.recipe, arguments.overrides)
    from mcjepa.pipeline.stages.benchmarks import require_weights
    from mcjepa.pipeline.stages.evaluation import Following, RecipeEvaluation

    evaluation = RecipeEvaluation(recipe, plain, arguments.again, _shown)
    if arguments.weights:
        found = evaluation.score_folder(require_weights(arguments.weights))
    else:
        found = evaluation.score_run(Following(arguments.poll_s, arguments.patience_s) if arguments.follow else None)
    _print_scores(found.scores, arguments.json, found.summary, brief=True)
    if not arguments.json:
        from mcjepa.pipeline.stages.following import after_evaluation

        print(f"report: {found.report}")
        print_next(after_evaluation(recipe, found.summary["weights"]), sys.stdout)
    return max(_exit_code(found.scores), PARTIAL if found.skipped else OK)


def flow(arguments: argparse.Namespace) -> int:
    """`mcjepa eval flow`: 4 where a score is incomplete."""
    _sort_words(arguments)
    from mcjepa.pipeline.recipe.benchmarks import flow_set_names, flow_settings
    from mcjepa.pipeline.stages.benchmarks import check_flow_source, score_flow, submit_flow

    names = flow_set_names(arguments.set, bool(arguments.submission))
    general = _general(arguments)
    config = flow_settings(names, arguments.data, arguments.baselines, arguments.overrides, general)
    weights, estimates = arguments.weights, arguments.estimates
    check_flow_source(weights, estimates, arguments.baselines, arguments.submission)
    with _shown() as show:
        if arguments.submission:
            archive = Path(arguments.submission)
            record = submit_flow(archive, names[0], arguments.data, weights, estimates, config, show)
        else:
            scores = score_flow(weights, estimates, config, _results(arguments), show)
    if arguments.submission:
        size = f"{record['bytes'] / 1e6:.1f} MB"
        text = f"{archive}: {record['files']} flows for {names[0]}, {size}, read again and checked"
        print(json.dumps(record) if arguments.json else text)
        clamped = record["clamped_pixels"]
        if clamped:
            pixels = f"{sum(clamped.values())} pixels of {len(clamped)} pairs ({', '.join(list(clamped)[:MOST_NAMED])})"
            print(f"mcjepa: {pixels} beyond KITTI's -512..511.98 px were cut to it", file=sys.stderr)
        return OK
    if arguments.json:
        print(json.dumps({score.name: _plain_flow(score) for score in scores}))
    else:
        print("\n".join(flow_table(score) for score in scores))
    return _exit_code(scores)


def probe(arguments: argparse.Namespace) -> int:
    """`mcjepa eval probe`: settings are those of a named protocol and overrides of it."""
    from mcjepa.pipeline.recipe.benchmarks import probe_settings

    general = _general(arguments)
    protocol, head = arguments.protocol, arguments.head
    return _score_one(
        arguments, probe_settings(arguments.set, arguments.data, protocol, head, arguments.overrides, general)
    )


def vos(arguments: argparse.Namespace) -> int:
    """`mcjepa eval vos`: weights, or masks that exist."""
    _take_optional_weights(arguments)
    if bool(arguments.weights) == bool(arguments.estimates):
        found = "both WEIGHTS and --estimates" if arguments.weights else "neither WEIGHTS nor --estimates"
        raise UsageError(f"{found}; expected one of them: a weights folder, or a folder of masks to score")
    from mcjepa.pipeline.recipe.benchmarks import vos_settings
    from mcjepa.pipeline.stages.benchmarks import output_folders, score_masks

    outputs = [name for name in ("masks", "overlays") if getattr(arguments, name)]
    general = _general(arguments)
    config = vos_settings(arguments.set, arguments.data, arguments.preset, outputs, arguments.overrides, general)
    if arguments.estimates:
        with _shown() as show:
            scores = score_masks(Path(arguments.estimates), config, _results(arguments), show)
        code = _end(arguments, scores)
    else:
        code = _score_one(arguments, config)
    assert config.vos is not None
    for kind, place in output_folders(Path(arguments.out), config.vos.set).items():
        print(f"{kind} are in {place}", file=sys.stderr)
    return code


def finetune(arguments: argparse.Namespace) -> int:
    """`mcjepa eval finetune`: one rank, or starts several of the same command."""
    import os

    from mcjepa.pipeline.launch.ranks import start_ranks
    from mcjepa.pipeline.recipe.benchmarks import finetune_settings
    from mcjepa.pipeline.stages.benchmarks import check_finetune_ranks, finetune_weights
    from mcjepa.pipeline.world import is_world_started

    config = finetune_settings(arguments.set, arguments.data, arguments.overrides, _general(arguments))
    if arguments.ranks > 1 and not is_world_started(os.environ):
        check_finetune_ranks(config, arguments.ranks)
        return start_ranks(arguments.argv, arguments.ranks)
    with _shown() as show:
        scores = finetune_weights(arguments.weights, config, _results(arguments), show)
    return _end(arguments, scores) if scores is not None else OK


def classify(arguments: argparse.Namespace) -> int:
    """`mcjepa eval classify`."""
    from mcjepa.pipeline.recipe.benchmarks import classify_settings

    config = classify_settings(arguments.set, arguments.data, arguments.overrides, _general(arguments))
    return _score_one(arguments, config)


def compare(arguments: argparse.Namespace) -> int:
    """`mcjepa eval compare`: writes the page and prints the table."""
    from mcjepa.pipeline.stages.evaluation import compare_folders

    labels, compared = compare_folders(arguments.folders, Path(arguments.out))
    print(_compared_json(labels, compared) if arguments.json else "\n".join(_compared_lines(labels, compared)))
    return OK


def _score_one(arguments: argparse.Namespace, config: EvalConfig) -> int:
    from mcjepa.pipeline.stages.benchmarks import score_weights

    with _shown() as show:
        scores = score_weights(arguments.verb, arguments.weights, config, _results(arguments), show)
    return _end(arguments, scores)


def _end(arguments: argparse.Namespace, scores: Sequence[Score]) -> int:
    _print_scores(scores, arguments.json, {score.name: dict(score.metrics) for score in scores})
    return _exit_code(scores)


def _general(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of all evaluations that were given as options."""
    return {name: getattr(arguments, name) for name in ("device", "threads", "seed") if hasattr(arguments, name)}


def _results(arguments: argparse.Namespace) -> Results:
    from mcjepa.pipeline.recipe.recipe import without_credentials
    from mcjepa.pipeline.stages.benchmarks import Results
    from mcjepa.pipeline.tracking import TrackingConfig

    named = without_credentials(arguments.tracking or "")
    tracking = TrackingConfig(uri=named, experiment=arguments.experiment) if named else None
    return Results(Path(arguments.out), tracking)


@contextmanager
def _shown() -> Iterator[OnEvent]:
    """What an evaluation tells is shown as progress on standard error."""
    with StageProgress("eval") as progress:
        yield lambda event: progress.update(f"{event.score} {event.phase}", event.done, event.total)


def _take_optional_weights(arguments: argparse.Namespace) -> None:
    """Gives a first word that is an override back to the overrides: argparse takes it for optional WEIGHTS."""
    if arguments.weights and "=" in arguments.weights and not Path(arguments.weights).exists():
        arguments.overrides = [arguments.weights, *arguments.overrides]
        arguments.weights = None


def _sort_words(arguments: argparse.Namespace) -> None:
    """Puts words where they belong: the parser gives `--baselines` the word behind it, WEIGHTS the first free one."""
    _take_optional_weights(arguments)
    taken = arguments.baselines
    if taken and "=" in taken:
        arguments.baselines, arguments.overrides = "all", [*arguments.overrides, taken]
    elif taken and not arguments.weights and Path(taken).is_dir():
        arguments.baselines, arguments.weights = "all", taken


def _exit_code(scores: Sequence[Score]) -> int:
    """4 if any score lacks an item, or has a metric that is no number, which standard error then names; else 0."""
    incomplete = [score for score in scores if not score.card.complete]
    for score in incomplete:
        for reason in score.card.failed[:MOST_NAMED]:
            print(f"mcjepa: {score.name} is incomplete: {reason}", file=sys.stderr)
        if len(score.card.failed) > MOST_NAMED:
            print(f"mcjepa: … and {len(score.card.failed) - MOST_NAMED} more, all on the card", file=sys.stderr)
    undefined = [score for score in scores if score.undefined]
    for score in undefined:
        names = ", ".join(score.undefined[:MOST_NAMED])
        print(f"mcjepa: {score.name} has {len(score.undefined)} metrics that are no number: {names}", file=sys.stderr)
    return PARTIAL if incomplete or undefined else OK


def _print_scores(scores: Sequence[Score], as_json: bool, document: dict[str, Any], *, brief: bool = False) -> None:
    if as_json:
        print(json.dumps(document, default=dataclasses.asdict))
    else:
        print("\n".join(score_table(score, brief) for score in scores), flush=True)


def score_table(score: Score, brief: bool) -> str:
    """A score for people: metrics as rows, the model and the baselines as columns.

    Args:
        score: of any benchmark.
        brief: what counts most alone; all metrics are in scores.json and in the report.
    """
    own = [name for name in score.metrics if not any(name.endswith(f"_{rival}") for rival in score.rivals)]
    shown = [name for name in HEADLINES.get(score.name.split("/")[0], ()) if name in own]
    shown = shown or [name for name in own if not PER_CLASS.fullmatch(name)][:MOST_HEADLINES]
    shown = shown if brief else own
    lines = [f"{score.name}: {score.card.frames} {score.card.unit} ({score.card.split})"]
    columns = ("model", *(rival.replace("_", "-") for rival in score.rivals))
    lines.append(f"  {'':<20}" + "".join(f"{column:>15}" for column in columns))
    for key in shown:
        names = (key, *(f"{key}_{rival}" for rival in score.rivals))
        cells = (f"{score.metrics[name]:.4f}" if name in score.metrics else "-" for name in names)
        lines.append(f"  {key:<20}" + "".join(f"{cell:>15}" for cell in cells))
    left = len(own) - len(shown)
    return "\n".join([*lines, f"  and {left} more in the report"] if left else lines)


def flow_table(score: Score) -> str:
    """A flow score for people: metrics as rows, the model and the baselines as columns, and what it lacks."""
    card = score.card
    own = [name for name in score.metrics if not any(name.endswith(f"_{rival}") for rival in score.rivals)]
    columns = (["model"] if own else []) + [rival.replace("_", "-") for rival in score.rivals]
    of_first = f"_{score.rivals[0]}" if score.rivals else ""
    keys = own or [name.removesuffix(of_first) for name in score.metrics if name.endswith(of_first)]
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


def _plain_flow(score: Score) -> dict[str, Any]:
    from mcjepa.evals.cards import finite_or_none

    metrics = {name: finite_or_none(value) for name, value in score.metrics.items()}
    failed = list(score.card.failed)
    return {**metrics, "pairs": score.card.frames, "complete": score.card.complete, "failed": failed}


def _compared_json(labels: list[str], compared: tuple[ComparedScore, ...]) -> str:
    scores = {
        one.name: {
            "comparable": not one.differences,
            "differences": list(one.differences),
            "seeds": list(one.seeds),
            "better": {metric.name: metric.better for metric in one.metrics},
            "metrics": {
                metric.name: [value if math.isfinite(value) else None for value in metric.values]
                for metric in one.metrics
            },
            "against_first": [_plain_difference(labels, found) for found in one.against_first],
        }
        for one in compared
    }
    return json.dumps({"evaluations": labels, "scores": scores})


def _plain_difference(labels: list[str], found: Difference) -> dict[str, Any]:
    from mcjepa.evals.cards import finite_or_none

    low, high = finite_or_none(found.interval.low), finite_or_none(found.interval.high)
    return {
        "evaluation": labels[found.column],
        "against": labels[found.reference],
        "metric": found.metric,
        "difference": found.interval.difference,
        "low": low,
        "high": high,
        "units": found.interval.units,
        "unit": found.mean.unit,
        "exact": found.mean.exact,
        "enough_units": found.interval.has_enough_units,
        "more_than_chance": found.interval.is_more_than_chance,
    }


def _compared_lines(labels: list[str], compared: tuple[ComparedScore, ...]) -> list[str]:
    wide = max(14, *(len(label) for label in labels)) + 2
    lines = [f"{'':<28} {'':<22}" + "".join(f"{label:>{wide}}" for label in labels)]
    for one in compared:
        for metric in one.metrics:
            values = (_cell(value, i in metric.best) for i, value in enumerate(metric.values))
            lines.append(f"{one.name:<28} {metric.name:<22}" + "".join(f"{value:>{wide}}" for value in values))
        if max(one.seeds) > 1:
            counts = "".join(f"{f'{count} ':>{wide}}" for count in one.seeds)
            lines.append(f"{one.name:<28} {'seeds of the head':<22}{counts}")
        lines += [f"  {found.sentence(labels)}" for found in one.against_first]
        lines += [f"  not comparable: {text}" for text in one.differences]
    return lines


def _cell(value: float, best: bool) -> str:
    return f"{value:.4f}{'*' if best else ' '}" if math.isfinite(value) else "- "
