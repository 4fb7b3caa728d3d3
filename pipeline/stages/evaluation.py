"""The eval stage: all benchmarks of a recipe on its run's weights, recorded in MLflow and a report; and comparisons.

What is done for a weights folder is in OUT/eval/NAME: `scores.json` with the key of what was asked, then `mlflow.json`
with the run that has it. A restarted command reads both and does only what is missing.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mcjepa.data_prep.errors import DataError
from mcjepa.evals.cards import SCORES_NAME, Score, read_scores, stored_data, stored_key
from mcjepa.evals.data_state import data_state
from mcjepa.evals.models import read_weights
from mcjepa.evals.progress import OnEvent
from mcjepa.evals.record import record_scores
from mcjepa.evals.report.chain import REPORT, SUMMARY, write_results
from mcjepa.evals.report.comparison import ComparedScore, Evaluated, compare_scores
from mcjepa.evals.report.content import ReportContent
from mcjepa.evals.report.page import write_report
from mcjepa.evals.run import evaluation_key, run_evaluation
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.recipe import Recipe, required
from mcjepa.pipeline.run.weights import RunWeights
from mcjepa.pipeline.stages.chain_records import recorded_chain
from mcjepa.pipeline.tracking import attach, run_label

log = logging.getLogger(__name__)
Show = Callable[[], AbstractContextManager[OnEvent]]
"""Held while one weights folder is scored; gives what is told of the progress."""


@dataclass(frozen=True)
class Following:
    """How long `--follow` waits for new weights."""

    poll_s: float
    patience_s: float
    """Without new weights it gives up after so long; 0: never."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation of a recipe's weights gave."""

    scores: list[Score]
    """Of the last weights folder."""
    summary: dict[str, Any]
    report: Path
    skipped: list[str]
    """Weights folders that their run removed before they were scored."""


class RecipeEvaluation:
    """Scores weights folders of a recipe.

    Args:
        recipe: with an `eval` part.
        plain: the same as plain data.
        again: whether what has been scored is scored again.
        show: makes what is told of the progress.
    """

    def __init__(self, recipe: Recipe, plain: dict[str, Any], again: bool, show: Show) -> None:
        self._recipe, self._plain, self._again, self._show = recipe, plain, again, show
        self._config = required(recipe.eval, "eval", recipe)

    def score_folder(self, folder: Path) -> Evaluation:
        """Scores the weights of a folder."""
        scores, run_id = self._score(folder)
        return self._end(scores, run_id, [])

    def score_run(self, following: Following | None) -> Evaluation:
        """Scores the newest weights of the recipe's run, or all of them as the training writes them.

        Raises:
            UsageError: the run has no weights.
        """
        train = required(self._recipe.train, "train", self._recipe)
        weights = RunWeights(train.run, Path(self._recipe.out) / "eval" / ".weights")
        names = follow_weights(weights, train.steps, following) if following else iter(weights.names()[-1:])
        last, skipped = None, []
        for name in names:
            try:
                last = self._score(weights.fetch(name), fetched=True)
            except (DataError, OSError) as error:
                if not following or name in weights.names():
                    raise
                log.warning("%s was removed by its run before it was scored (%s)", name, error)
                skipped.append(name)
            finally:
                weights.forget(name)
        if last is None:
            raise UsageError(
                f"no weights below {weights.location}/weights, expected a trained run; run `mcjepa train` first"
            )
        return self._end(*last, skipped)

    def _score(self, folder: Path, fetched: bool = False) -> tuple[list[Score], str]:
        """Scores, records and renews the report; what is there already is not done again. Scores and MLflow run."""
        started = time.perf_counter()
        recipe, known = self._recipe, read_weights(folder)
        name = folder.resolve().name
        out = Path(recipe.out) / "eval" / name
        scores = [] if self._again else _finished(out, evaluation_key(known.identity, self._config))
        if scores and not _data_is_as_it_was(out, data_state(self._config)):
            log.warning(
                "%s has been scored already, but files of its data have changed since: it is scored again", name
            )
            scores = []
        if scores:
            log.info("%s has been scored already; --again scores it again", name)
        else:
            with self._show() as on_event:
                scores = run_evaluation(folder, self._config, out, on_event)
        began = time.time() - (time.perf_counter() - started)
        run_id = record_scores(
            recipe.tracking, f"{run_label(self._plain)} {name}", self._plain["eval"], scores, out, self._plain,
            began,
        )  # fmt: skip
        seconds = round(time.perf_counter() - started, 1)
        chain = recorded_chain(recipe, self._plain, known, fetched)
        write_results(chain, scores, known, {"eval": run_id, "seconds": seconds})
        return scores, run_id

    def _end(self, scores: list[Score], run_id: str, skipped: list[str]) -> Evaluation:
        out = Path(self._recipe.out)
        attach(self._recipe.tracking.uri, run_id, [out / REPORT, out / SUMMARY])
        if skipped:
            names = ", ".join(skipped)
            log.warning("%d weights folders were removed before they were scored: %s", len(skipped), names)
        return Evaluation(scores, json.loads((out / SUMMARY).read_text(encoding="utf-8")), out / REPORT, skipped)


def _finished(out: Path, key: str) -> list[Score]:
    """Scores of a folder that answer what is asked and lack nothing; none otherwise.

    What was incomplete is scored again: who completes a set, or corrects a file, asks again.
    """
    scores = read_scores(out) if stored_key(out) == key else []
    return scores if all(score.card.complete and not score.undefined for score in scores) else []


def _data_is_as_it_was(out: Path, present: str) -> bool:
    """Whether the sets' folders look as they did when they were scored; where either is not known, it is said."""
    before = stored_data(out)
    if not before or not present:
        log.warning(
            "whether the data of the scores in %s is as it was is not known: %s",
            out,
            "their file does not say it" if present else "a set's folder is not there",
        )
        return True
    return before == present


def follow_weights(weights: RunWeights, steps: int, following: Following) -> Iterator[str]:
    """Names of weights folders as they appear, until the training says that it has finished.

    Args:
        weights: of the run.
        steps: of the whole training.
        following: how long to wait.

    Raises:
        DataError: no new ones came for too long.
    """
    seen: set[str] = set()
    waited_since = time.monotonic()
    while True:
        finished = weights.is_finished(steps)  # asked first: what it wrote before is listed below
        new = [name for name in weights.names() if name not in seen]
        if new:
            seen.add(new[0])
            yield new[0]  # one by one: the list may have changed when it has been scored
            waited_since = time.monotonic()
        elif finished:
            return
        elif following.patience_s and time.monotonic() - waited_since > following.patience_s:
            raise DataError(
                f"no new weights below {weights.location} for {following.patience_s:.0f} s and the training has not "
                "finished; look at its log, and run this command again when it goes on"
            )
        else:
            time.sleep(following.poll_s)


def compare_folders(words: Sequence[str], page: Path) -> tuple[list[str], tuple[ComparedScore, ...]]:
    """Sets evaluations side by side on a page.

    Args:
        words: `[LABEL=]DIR`, each an evaluation's folder or a folder of such.
        page: file to write.

    Returns:
        Their labels and their scores side by side.

    Raises:
        UsageError: there is no such folder, or two evaluations have one label.
    """
    evaluations = [_with_pictures_there(found) for word in words for found in read_evaluations(word)]
    labels = [evaluated.label for evaluated in evaluations]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UsageError(f"two evaluations are named {twice}, expected a name each; write LABEL=DIR")
    content = ReportContent(
        title="mcjepa: evaluations side by side",
        summary=f"{len(evaluations)} evaluations: {', '.join(labels)}",
        evaluations=tuple(evaluations),
        scores=tuple(one for evaluated in evaluations[-1:] for one in evaluated.scores),
    )
    write_report(page, content)
    return labels, compare_scores(evaluations)


def _with_pictures_there(evaluated: Evaluated) -> Evaluated:
    """Without the pictures whose files are missing: people copy scores.json alone from a cluster."""
    scores = tuple(
        replace(score, pictures=tuple(picture for picture in score.pictures if picture.path.is_file()))
        for score in evaluated.scores
    )
    return Evaluated(label=evaluated.label, scores=scores)


def read_evaluations(word: str) -> list[Evaluated]:
    """The evaluation of a folder, or all of a folder of such, by name.

    Raises:
        UsageError: there is no such folder, or no label before `=`.
        DataError: there are no scores in it, or they are damaged.
    """
    label, separator, place = word.partition("=")
    if separator and not (label and place):
        raise UsageError(f"{word!r} names no evaluation, expected DIR or LABEL=DIR; write both")
    folder = Path(place if separator else word)
    folder = folder.parent if folder.name == SCORES_NAME else folder
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}, expected one with {SCORES_NAME}, such as OUT/eval/step-000001200")
    inside = sorted(path.parent for path in folder.glob(f"*/{SCORES_NAME}"))
    if inside and not (folder / SCORES_NAME).is_file():
        prefix = f"{label} " if separator else ""
        return [Evaluated(label=prefix + found.name, scores=tuple(read_scores(found))) for found in inside]
    return [Evaluated(label=label if separator else folder.resolve().name, scores=tuple(read_scores(folder)))]
