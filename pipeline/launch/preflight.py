"""The preflight of a job: facts of recipe and site are gathered here and judged by `cluster.preflight`."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcjepa.cluster.job import Job
from mcjepa.cluster.preflight.data import (
    INDEX_BYTES,
    CacheFacts,
    CheckFacts,
    ClusterFacts,
    StreamFacts,
    cache_finding,
    loading_finding,
    read_finding,
    requests_finding,
    start_finding,
    stream_findings,
)
from mcjepa.cluster.preflight.findings import Finding
from mcjepa.cluster.preflight.memory import EngineFacts, estimate_memory, memory_finding
from mcjepa.cluster.preflight.run import (
    HostFacts,
    RunFacts,
    checkpoint_bytes,
    checkpoint_finding,
    copy_bytes,
    destination_finding,
    host_finding,
    interruption_finding,
    shared_finding,
    terms_finding,
    time_finding,
)
from mcjepa.cluster.preflight.scheduler import read_slurm, scheduler_findings
from mcjepa.cluster.site import Need, Site, needed, variables
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.launch import facts as plan_facts
from mcjepa.pipeline.launch.fitting import find_world, fitting_cluster
from mcjepa.pipeline.launch.ranks import measure_step_s
from mcjepa.pipeline.recipe.files import apply_overrides, to_plain
from mcjepa.pipeline.recipe.recipe import Recipe, required
from mcjepa.pipeline.recipe.sweep import sweep_runs
from mcjepa.pipeline.recipe.validation import validate
from mcjepa.pipeline.settings.train import TrainConfig
from mcjepa.pipeline.step.schedule import build_schedule, late_terms

UNSEEN = ("train.seed=", "train.optimizer.")
"""Keys whose values change nothing that a preflight sees."""
ORDER_BYTES = 8
"""Of a shard, in each rank: where its samples end in the row of all."""
WAITING = 3
"""Checkpoints of a run on s3 that may lie in its scratch folder at a time."""


@dataclass(frozen=True)
class Setting:
    """Where and how the run is to be, as the command line and the site say."""

    cluster: ClusterFacts
    device_bytes: int | None
    """Of a GPU, or of a node without GPUs."""
    step_s: float | None = None
    site: Site | None = None
    need: Need | None = None
    brief: bool = False
    """Whether memory is left out where that of the device is not known: counting takes seconds."""


@dataclass(frozen=True)
class AskedSetting:
    """What the command line says of where a run is to be; 0 and None: the site or this machine says it."""

    nodes: int = 0
    ranks: int = 0
    gpus_per_node: int | None = None
    memory_gib: float | None = None
    step_s: float | None = None


def setting_of(site: Site | None, asked: AskedSetting) -> Setting:
    """Where a run is to be, by the command line, else the site, else this machine.

    Raises:
        UsageError: a number that cannot be.
    """
    for name in ("nodes", "ranks"):
        if getattr(asked, name) < 0:
            raise UsageError(f"--{name} {getattr(asked, name)}, expected 1 or more; leave it out for the site's")
    for name in ("step_s", "memory_gib"):
        value = getattr(asked, name)
        if value is not None and value <= 0:
            raise UsageError(f"--{name.replace('_', '-')} {value:g}, expected more than 0")
    need = needed(site, "train", asked.nodes) if site else None
    here = site is None or site.kind != "slurm"
    nodes = asked.nodes or (need.nodes if need else 1)
    gpus = asked.gpus_per_node
    if gpus is None:
        gpus = plan_facts.gpus_here() if here else need.gpus_per_node if need else 0
    tasks = need.tasks_per_node if need else max(gpus, 1)
    if asked.memory_gib is not None:
        memory: int | None = int(asked.memory_gib * 2**30)
    else:
        memory = plan_facts.device_memory(gpus > 0) if here else site_memory(need)
    return Setting(ClusterFacts(nodes, asked.ranks or nodes * tasks, gpus), memory, asked.step_s, site, need)


def measured(setting: Setting, plain: Mapping[str, Any], steps: int) -> Setting:
    """The setting with the time of some real steps on this machine.

    Raises:
        UsageError: the run is not to be on one machine such as this, or too few steps.
        RunError: the steps failed.
    """
    if setting.cluster.nodes > 1 or (setting.site and setting.site.kind == "slurm"):
        raise UsageError("--measure takes steps on this machine, and the run is for another; give --step-s S instead")
    return dataclasses.replace(setting, step_s=measure_step_s(plain, setting.cluster.ranks, steps))


def site_memory(need: Need | None) -> int | None:
    """Memory of a node where ranks compute on CPUs; a site file does not say that of a GPU."""
    if not need or need.gpus_per_node or not need.node_memory_gb:
        return None
    return int(need.node_memory_gb * 1e9)


def launch_findings(recipe: Recipe, job: Job) -> list[Finding]:
    """The preflight of a job; what a rank's step holds is counted only where the memory is known."""
    site, need = job.site, job.need
    if job.stage != "train":
        with _site_storage(site):
            return _stage_findings(recipe, job)
    here = site.kind != "slurm"
    memory = plan_facts.device_memory(need.gpus_per_node > 0) if here else site_memory(need)
    cluster = ClusterFacts(need.nodes, need.tasks, need.gpus_per_node)
    return preflight(recipe, Setting(cluster, memory, None, site, need, brief=True))


def _stage_findings(recipe: Recipe, job: Job) -> list[Finding]:
    """Preparation and evaluation: the scheduler, the place of what they write, MLflow."""
    findings = scheduler_findings(job.need, len(job.elements), read_slurm()) if job.site.kind == "slurm" else []
    place = required(recipe.prep, "prep", recipe).root if job.stage == "prep" else recipe.out
    findings.append(destination_finding(plan_facts.probe_destination("out", place)))
    if job.site.kind == "slurm":
        findings += plan_facts.password_finding(recipe.tracking.uri, job.site.setup)
    return [*findings, plan_facts.tracking_finding(recipe.tracking.uri)]


def preflight(recipe: Recipe, setting: Setting) -> list[Finding]:
    """Everything that can be said of a training run before it starts.

    Args:
        recipe: with a `train` part.
        setting: where it is to be.
    """
    with _site_storage(setting.site):
        if not recipe.sweep:
            return _preflight(recipe, required(recipe.train, "train", recipe), setting)
        return _sweep_preflight(recipe, recipe.sweep, setting)


def _sweep_preflight(recipe: Recipe, sweep: Mapping[str, Sequence[Any]], setting: Setting) -> list[Finding]:
    """Findings of a sweep's runs; of runs that differ in nothing that a preflight sees, those of the first.

    What all say is said once; what one of them says is said of it.
    """
    runs = sweep_runs(sweep, required(recipe.train, "train", recipe).run)
    plain, judged = to_plain(recipe), dict[tuple[str, ...], str]()
    found: dict[tuple[str, ...], tuple[Finding, list[str]]] = {}
    for run in runs:
        seen = tuple(word for word in run.overrides if not word.startswith((*UNSEEN, "sweep=", "train.run=")))
        if seen in judged:
            continue
        judged[seen] = run.name
        one = validate(Recipe, apply_overrides(copy.deepcopy(plain), [*seen, "sweep=null"]), f"run {run.name}")
        for finding in _preflight(one, required(one.train, "train", one), setting, len(runs)):
            # what is ok was measured, and is a little different each time
            what = finding.found if finding.severity == "error" else ""
            same = (finding.topic, finding.severity, finding.expected, finding.fix, what)
            found.setdefault(same, (finding, []))[1].append(run.name)
    return [
        finding
        if len(set(names)) == len(judged)
        else dataclasses.replace(finding, found=f"run {' and '.join(names[:3])}: {finding.found}")
        for finding, names in found.values()
    ]


@contextlib.contextmanager
def _site_storage(site: Site | None) -> Iterator[None]:
    """While it is held, the site's S3 endpoint and profile are ours where we have none of our own."""
    ours = {name: value for name, value in (variables(site) if site else {}).items() if name.startswith("AWS_")}
    added = {name: value for name, value in ours.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _preflight(recipe: Recipe, config: TrainConfig, setting: Setting, elements: int = 1) -> list[Finding]:
    findings = find_world(setting.cluster, config)
    if setting.need and setting.site and setting.site.kind == "slurm":
        findings += scheduler_findings(setting.need, elements, read_slurm())
        findings += plan_facts.password_finding(recipe.tracking.uri, setting.site.setup)
    streams, datasets = plan_facts.read_streams(config.stream, config.seed)
    findings += datasets
    findings += [found for stream in streams for found in stream_findings(stream, setting.cluster)]
    if streams:
        findings += _reading(config, setting, streams)
    return findings + _run(recipe, config, setting, streams, elements)


def _reading(config: TrainConfig, setting: Setting, streams: list[StreamFacts]) -> list[Finding]:
    from mcjepa.pipeline.stream.shard_check import LISTED, MOST_LISTS, SAMPLED

    folder = (setting.site.shard_cache if setting.site else "") or config.stream.store.cache_dir
    cache = CacheFacts(folder, config.stream.store.cache_bytes)
    name = config.stream.store.check
    digests = {"sampled": SAMPLED, "full": None}.get(name, 0)
    check = CheckFacts(name, LISTED, 0 if name == "none" else MOST_LISTS, digests)
    rate = plan_facts.read_rate(config.stream)
    return [
        start_finding(streams, setting.cluster, check),
        cache_finding(streams, setting.cluster, cache),
        requests_finding(streams, setting.cluster, cache, setting.step_s),
        read_finding(streams, setting.cluster, setting.step_s, rate),
        _loading(config, setting),
    ]


def _workers(config: TrainConfig, setting: Setting) -> tuple[int, int]:
    """Loading processes and cores of a rank; the cores are the site's for a job of Slurm, else this machine's."""
    from mcjepa.pipeline.stream.workers import default_workers

    cluster, workers = fitting_cluster(setting.cluster, config), config.stream.workers
    ranks, cores = max(cluster.ranks_per_node, 1), len(os.sched_getaffinity(0))
    if setting.site and setting.site.kind == "slurm" and setting.need:
        cores = setting.need.cpus_per_task * ranks
    if workers is None:
        workers = default_workers(cores, ranks, on_gpu=cluster.gpus_per_node > 0)
    return workers, max(cores // ranks, 1)


def _loading(config: TrainConfig, setting: Setting) -> Finding:
    """Loading processes against steps."""
    workers, cores = _workers(config, setting)
    ranks = fitting_cluster(setting.cluster, config).ranks
    return loading_finding(plan_facts.load_seconds(config.stream, config.seed, ranks), workers, cores, setting.step_s)


def _host(config: TrainConfig, setting: Setting, streams: list[StreamFacts], elements: int) -> Finding:
    """Memory of a node's processors, where ranks compute on GPUs."""
    stream, cluster = config.stream, setting.cluster
    workers, _ = _workers(config, setting)
    height, width = stream.augment.pair.crop
    pixels = {"pairs": height * width, "views": stream.augment.view.size**2}
    step_bytes = sum(2 * 3 * pixels[name] * -(-batch // cluster.ranks) for name, batch in stream.batches.items())
    shards = sum(each.shards for each in streams)
    memory = setting.need.node_memory_gb if setting.need else None
    return host_finding(
        HostFacts(
            ranks=cluster.ranks_per_node,
            index_bytes=INDEX_BYTES * shards,
            order_bytes=ORDER_BYTES * shards,
            workers=workers,
            step_bytes=step_bytes,
            prefetch=stream.prefetch,
            copy_bytes=copy_bytes(elements, cluster.ranks) if config.checkpoint.background else (0, 0),
            node_bytes=int(memory * 1e9) if memory else None,
        )
    )


def _run(recipe: Recipe, config: TrainConfig, setting: Setting, streams: list[StreamFacts], runs: int) -> list[Finding]:
    """Memory, places, time, checkpoints."""
    from mcjepa.pipeline.launch.step_memory import model_size

    size, findings = model_size(recipe.model), []
    if not (setting.brief and setting.device_bytes is None):
        fitting = fitting_cluster(setting.cluster, config)
        findings.append(_memory(recipe, config, dataclasses.replace(setting, cluster=fitting)))
    if setting.cluster.gpus_per_node:
        findings.append(_host(config, setting, streams, size.elements))
    epoch = {stream.name: stream.steps_per_epoch for stream in streams}
    steps_per_epoch, keep = epoch.get("views") or epoch.get("pairs"), config.checkpoint
    known = config.steps or steps_per_epoch  # else the length is in epochs of a dataset that is not there
    schedule = build_schedule(config, steps_per_epoch or 1) if known else None
    for_good = schedule.steps // keep.keep_every_steps if schedule and keep.keep_every_steps else 0
    kept = keep.keep_last + for_good + bool(keep.best_metric)
    findings += _places(config, setting, checkpoint_bytes(size.elements), runs * (kept + 1))
    findings.append(plan_facts.tracking_finding(recipe.tracking.uri))
    if schedule is None:
        return findings
    findings.append(terms_finding(late_terms(schedule, config)))
    run = RunFacts(
        steps=schedule.steps,
        every_steps=keep.every_steps,
        kept=kept,
        grace_s=setting.site.save_s if setting.site and setting.site.kind == "slurm" else keep.grace_s,
        elements=size.elements,
        ranks=setting.cluster.ranks,
        nodes=setting.cluster.nodes,
        accelerators=setting.cluster.nodes * setting.cluster.gpus_per_node,
        step_s=setting.step_s,
        time_limit_s=60.0 * setting.need.time_min if setting.need else None,
        background=keep.background,
    )
    findings += [time_finding(run), interruption_finding(run)]
    findings.append(checkpoint_finding(run, plan_facts.write_rate(config.run)))
    return findings


def _memory(recipe: Recipe, config: TrainConfig, setting: Setting) -> Finding:
    from mcjepa.pipeline.launch.step_memory import model_size, step_memory

    engine, cluster, parts = config.engine, setting.cluster, config.engine.accumulation_steps
    bucket, overlap = plan_facts.bucket_options(engine.options, engine.zero_stage)
    facts = EngineFacts(
        engine.zero_stage, engine.precision, cluster.ranks, cluster.gpus_per_node > 0, engine.offload, bucket, overlap
    )
    estimate = estimate_memory(model_size(recipe.model), step_memory(config, recipe.model, cluster.ranks), facts)
    stream = config.stream
    words = [
        f"{-(-batch // cluster.ranks) // parts} {name}"
        for name, batch in (("pairs", stream.pair_batch), ("views", stream.view_batch))
        if batch
    ]
    kept = "activation checkpointing" if recipe.model.encoder.activation_checkpointing else "all activations kept"
    alone = 1 if cluster.gpus_per_node else cluster.ranks_per_node
    watched = setting.site is not None and setting.site.kind == "slurm"
    what = f"{' + '.join(words)} at a time on {cluster.ranks} rank(s), {kept}"
    copies = 0
    if config.checkpoint.background and not cluster.gpus_per_node:
        of_all, of_first = copy_bytes(model_size(recipe.model).elements, cluster.ranks)
        copies = of_all * alone + of_first
    return memory_finding(estimate, facts, what, setting.device_bytes, alone, watched, copies)


def _places(config: TrainConfig, setting: Setting, checkpoint: int, at_most: int) -> list[Finding]:
    """The places that the run writes to, which need room for the checkpoints that lie there at most."""
    keep, remote = config.checkpoint, "://" in config.run and not config.run.startswith("file://")
    there = 0 if remote else plan_facts.checkpoints_there(config.run)
    most = max(at_most - there, 1) * checkpoint
    looks = [plan_facts.probe_destination("run", config.run, 0 if remote else most)]
    if remote:
        scratch = keep.scratch or tempfile.gettempdir()
        looks.append(plan_facts.probe_destination("scratch", scratch, WAITING * checkpoint))
    cache = config.stream.store.cache_dir
    if cache and (setting.site is None or setting.site.kind != "slurm"):  # of a cluster, it is on the nodes
        looks.append(plan_facts.probe_destination("cache", cache, config.stream.store.cache_bytes))
    findings = [destination_finding(look) for look in looks]
    if not remote and setting.cluster.nodes > 1:
        findings.append(shared_finding(config.run, plan_facts.file_system(config.run)))
    return findings
