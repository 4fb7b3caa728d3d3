"""The tables of a study from plain data: means over seeds, paired differences with their tests, meters over time.

scores    arm -> seed -> score -> metric -> value, as `scores.json` holds them
records   arm -> seed -> the training's records of its meters, each with its step
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mcjepa.evals.measures import present_name
from mcjepa.evals.study.settings import Measure, StudyConfig
from mcjepa.evals.study.statistics import PairedTest, Spread, holm, paired_test, spread

Scores = Mapping[str, Mapping[str, float]]
Record = Mapping[str, float]
LEVEL = 0.05
"""A difference is called one when its corrected p of the t test is below this."""
POINTS = 5
"""Steps at which meters are shown, evenly spaced, the last one included."""


@dataclass(frozen=True)
class Cell:
    """A measure of an arm."""

    by_seed: Mapping[int, float]
    spread: Spread


@dataclass(frozen=True)
class Comparison:
    """The reference arm against another one by a measure."""

    measure: str
    reference: str
    arm: str
    test: PairedTest
    p_holm: float
    """The t test's p, corrected for all arms that the measure compares."""
    better: bool
    """Whether the reference's mean is the better one."""

    @property
    def shown(self) -> bool:
        """Whether the seeds show a difference."""
        return self.p_holm < LEVEL


@dataclass(frozen=True)
class StudyTable:
    """Everything that a study's tables say."""

    name: str
    steps: int
    measures: Mapping[str, Measure]
    cells: Mapping[str, Mapping[str, Cell]]
    """Arm -> measure -> values; a measure that an arm has no scores of is missing."""
    comparisons: tuple[Comparison, ...]
    meters: Mapping[str, Mapping[str, Mapping[int, Spread]]]
    """Arm -> meter -> step -> spread over seeds."""
    missing: tuple[str, ...]
    """Runs `ARM/seed-N` that have no scores yet."""
    incomplete: tuple[str, ...] = ()
    """Scores that lack items, `ARM/seed-N SCORE: N items`: they are of others than the other runs' scores."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without NaN."""
        document: dict[str, Any] = _finite(asdict(self))
        return document | {"version": 1, "verdict": verdict(self)}


def measure_of(measure: Measure, scores: Scores) -> float:
    """A measure's value in one evaluation; NaN where a metric is missing.

    >>> flow = {"flow/a": {"epe": 1.0, "epe_zero": 4.0}, "flow/b": {"epe": 3.0, "epe_zero": 4.0}}
    >>> of, below = ("flow/a/epe", "flow/b/epe"), ("flow/a/epe_zero", "flow/b/epe_zero")
    >>> measure_of(Measure(of=of, share_of=below, better="lower"), flow)
    0.5
    """
    value = _total(measure.of, scores)
    if measure.share_of:
        below = _total(measure.share_of, scores)
        value = value / below if below else math.nan
    return value * measure.scale


def _total(names: Sequence[str], scores: Scores) -> float:
    present = {present_name(score): metrics for score, metrics in scores.items()}
    parts = (name.rpartition("/") for name in names)
    return math.fsum(present.get(present_name(score), {}).get(metric, math.nan) for score, _, metric in parts)


def build_table(
    name: str,
    steps: int,
    config: StudyConfig,
    scores: Mapping[str, Mapping[int, Scores]],
    records: Mapping[str, Mapping[int, Sequence[Record]]],
    incomplete: Sequence[str] = (),
) -> StudyTable:
    """The tables of what is there so far.

    Args:
        name: of the study.
        steps: of its reference arm's trainings.
        config: arms, seeds, measures.
        scores: of every run that has been evaluated.
        records: of every run that has been trained.
        incomplete: `StudyTable.incomplete`.
    """
    cells: dict[str, dict[str, Cell]] = {}
    for arm in config.arms:
        cells[arm] = {}
        for label, measure in config.measures.items():
            values = {seed: measure_of(measure, found) for seed, found in sorted(scores.get(arm, {}).items())}
            known = {seed: value for seed, value in values.items() if math.isfinite(value)}
            if known:
                cells[arm][label] = Cell(known, spread(list(known.values())))
    missing = [f"{a}/seed-{s}" for a in config.arms for s in config.seeds if s not in scores.get(a, {})]
    meters = {
        arm: {meter: _over_time(list(records.get(arm, {}).values()), meter) for meter in config.meters}
        for arm in config.arms
    }
    compared = _comparisons(config, cells)
    return StudyTable(name, steps, config.measures, cells, compared, meters, tuple(missing), tuple(incomplete))


def _comparisons(config: StudyConfig, cells: Mapping[str, Mapping[str, Cell]]) -> tuple[Comparison, ...]:
    """The reference against every other arm, measure by measure; a measure's tests are corrected together."""
    found: list[Comparison] = []
    for label, measure in config.measures.items():
        tests = _tests_of(label, config, cells)
        corrected = holm([test.p_t for test in tests.values()])
        for (arm, test), p in zip(tests.items(), corrected, strict=True):
            better = (test.difference < 0) == (measure.better == "lower")
            found.append(Comparison(label, config.compared_with, arm, test, p, better))
    return tuple(found)


def _tests_of(label: str, config: StudyConfig, cells: Mapping[str, Mapping[str, Cell]]) -> dict[str, PairedTest]:
    """Other arm -> the reference against it by one measure, over the seeds that both have."""
    ours, tests = cells[config.compared_with].get(label), {}
    for arm in config.arms:
        theirs = cells[arm].get(label)
        if arm == config.compared_with or not ours or not theirs:
            continue
        seeds = sorted(ours.by_seed.keys() & theirs.by_seed.keys())
        if seeds:
            tests[arm] = paired_test([ours.by_seed[s] for s in seeds], [theirs.by_seed[s] for s in seeds])
    return tests


def _over_time(runs: Sequence[Sequence[Record]], meter: str) -> dict[int, Spread]:
    """A meter over the seeds at evenly spaced steps that all of the runs have recorded it at."""
    series = [{int(r["step"]): float(r[meter]) for r in run if meter in r} for run in runs]
    series = [each for each in series if each]
    if not series:
        return {}
    steps = sorted(set.intersection(*(set(each) for each in series)))
    places = sorted({round(k * (len(steps) - 1) / (POINTS - 1)) for k in range(POINTS)}) if steps else []
    return {steps[place]: spread([each[steps[place]] for each in series]) for place in places}


def verdict(table: StudyTable) -> str:
    """One sentence: by which measures the reference arm is better or worse than each other, and where nothing shows."""
    clauses = []
    for arm in table.cells:
        sorted_by: dict[str, list[str]] = {"better than": [], "worse than": [], "not shown to differ from": []}
        for each in (c for c in table.comparisons if c.arm == arm):
            word = "not shown to differ from" if not each.shown else "better than" if each.better else "worse than"
            sorted_by[word].append(each.measure)
        parts = [f"{word} {arm} in {', '.join(labels)}" for word, labels in sorted_by.items() if labels]
        clauses += [" and ".join(parts)] if parts else []
    if not clauses:
        return "nothing can be compared yet"
    seeds = max(c.test.count for c in table.comparisons)
    return f"over {seeds} seeds, {table.comparisons[0].reference} is {'; '.join(clauses)} (Holm-corrected p < {LEVEL})"


def markdown(table: StudyTable) -> str:
    """The tables as Markdown."""
    labels = list(table.measures)
    head = f"{table.steps} steps a run; mean ± standard deviation over seeds (number of seeds)."
    lines = [f"# {table.name}", "", head, ""]
    lines += _rows(["arm", *labels], [[arm, *(_cell(table, arm, label) for label in labels)] for arm in table.cells])
    if table.missing:
        lines += ["", f"Not scored yet: {', '.join(table.missing)}."]
    if table.incomplete:
        lines += ["", f"**Not of all items, and so not comparable with the others**: {'; '.join(table.incomplete)}."]
    lines += [
        "",
        "## Differences",
        "",
        "Reference minus arm by seed; two-sided tests (`evals/study/statistics.py`).",
        "",
    ]
    lines += _rows(
        ["measure", "arms", "difference [95 % interval]", "t: p", "Holm", "exact: p (least possible)", "better"],
        [_difference(table, each) for each in table.comparisons],
    )
    lines += ["", f"**Verdict**: {verdict(table)}.", ""]
    for arm, meters in table.meters.items():
        shown = {meter: points for meter, points in meters.items() if points}
        if shown:
            steps = sorted({step for points in shown.values() for step in points})
            lines += [f"## Meters of {arm}", ""]
            rows = [[m, *(_spread(p[s], 3) if s in p else "" for s in steps)] for m, p in shown.items()]
            lines += [*_rows(["meter \\ step", *map(str, steps)], rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _cell(table: StudyTable, arm: str, label: str) -> str:
    cell = table.cells[arm].get(label)
    return f"{_spread(cell.spread, table.measures[label].digits)} ({cell.spread.count})" if cell else "–"


def _spread(found: Spread, digits: int) -> str:
    deviation = "" if math.isnan(found.deviation) else f" ± {found.deviation:.{digits}f}"
    return f"{found.mean:.{digits}f}{deviation}"


def _difference(table: StudyTable, each: Comparison) -> list[str]:
    digits, test = table.measures[each.measure].digits + 1, each.test
    interval = f"{test.difference:+.{digits}f} [{test.low:+.{digits}f}, {test.high:+.{digits}f}]"
    who = (each.reference if each.better else each.arm) if each.shown else "not shown"
    exact = f"{test.p_exact:.3g} ({test.least_p_exact:.3g})"
    return [
        each.measure,
        f"{each.reference} − {each.arm}",
        interval,
        f"{test.p_t:.3g}",
        f"{each.p_holm:.3g}",
        exact,
        who,
    ]


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
