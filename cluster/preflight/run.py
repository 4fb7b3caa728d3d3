"""The run as a whole: its hours, its checkpoints, what an interruption costs, and the places that it writes to."""

from __future__ import annotations

from dataclasses import dataclass

from mcjepa.cluster.preflight.findings import Finding, readable_bytes, readable_seconds

CHECKPOINT_BYTES_PER_ELEMENT = 12
"""fp32 weights and both moments; over all ranks, in any ZeRO stage."""
WEIGHTS_BYTES_PER_ELEMENT = 4
"""The safetensors file that rank 0 writes beside every checkpoint."""
MOST_LOST_SHARE = 0.02
"""Of a run, what an interruption may cost before it is a warning."""


@dataclass(frozen=True)
class RunFacts:
    """Length and saving of a run."""

    steps: int
    every_steps: int
    """Between checkpoints."""
    kept: int
    """Checkpoints kept at a time, those for good among them."""
    grace_s: float
    """Between the platform's stop signal and its kill."""
    elements: int
    """Parameters of the model."""
    ranks: int
    nodes: int
    accelerators: int
    """GPUs in all; 0 on CPUs."""
    step_s: float | None
    """Seconds per step; None: not known."""
    time_limit_s: float | None = None
    """Of one job; None: none known."""
    background: bool = False
    """Whether the training goes on while a checkpoint is written."""


@dataclass(frozen=True)
class Destination:
    """A place that the run writes to or reads from."""

    name: str
    location: str
    free_bytes: int | None = None
    """None: a bucket, or not known."""
    problem: str = ""
    """Why it cannot be written (or read); empty where it can."""
    needed_bytes: int = 0


def checkpoint_bytes(elements: int) -> int:
    """Files of one checkpoint with its weights."""
    return (CHECKPOINT_BYTES_PER_ELEMENT + WEIGHTS_BYTES_PER_ELEMENT) * elements


def copy_bytes(elements: int, ranks: int) -> tuple[int, int]:
    """Memory of a copy that a save in the background is written from: of every rank, and of rank 0 on top.

    >>> copy_bytes(1_000, 4)
    (3000, 4000)
    """
    return CHECKPOINT_BYTES_PER_ELEMENT * elements // ranks, WEIGHTS_BYTES_PER_ELEMENT * elements


def time_finding(run: RunFacts) -> Finding:
    """Hours of the run, GPU-hours, and how many jobs of the time limit that is."""
    if run.step_s is None:
        fix = "give --step-s S (`mcjepa train` logs s/step), or --measure to take some steps here"
        tenth = run.steps * 0.1 / 3600
        found = (
            f"{run.steps} steps; the seconds of a step are not known; every 0.1 s of them is {tenth:.3g} h and "
            f"{tenth * (run.accelerators or run.ranks):.3g} {'GPU' if run.accelerators else 'rank'}-hours"
        )
        return Finding("time", "warning", found, "", fix)
    hours = run.steps * run.step_s / 3600
    what, count = ("GPU", run.accelerators) if run.accelerators else ("rank", run.ranks)
    found = (
        f"{run.steps} steps of {readable_seconds(run.step_s)}: {readable_seconds(hours * 3600)}, "
        f"{hours * count:.1f} {what}-hours on {run.nodes} node(s)"
    )
    if run.time_limit_s:
        jobs = -(-hours * 3600 // run.time_limit_s)
        found += f"; {jobs:.0f} time limit(s) of {readable_seconds(run.time_limit_s)}"
    return Finding("time", "ok", found)


def interruption_finding(run: RunFacts) -> Finding:
    """What a kill costs without a warning: the steps since the last checkpoint."""
    lost = min(run.every_steps, run.steps)
    found = f"a checkpoint every {run.every_steps} steps: a killed rank or node costs at most {lost} steps"
    if run.step_s is not None:
        found += f", {readable_seconds(lost * run.step_s)}; a stop signal costs none"
    if run.step_s is not None and lost * run.step_s > 3600 and lost > MOST_LOST_SHARE * run.steps:
        fix = f"set train.checkpoint.every_steps={max(int(1800 / run.step_s), 1)} for half an hour"
        return Finding("interruption", "warning", found, "less than an hour", fix)
    return Finding("interruption", "ok", found)


def checkpoint_finding(run: RunFacts, write_rate: float | None) -> Finding:
    """Bytes of a checkpoint, and whether one can be written within the grace time.

    Args:
        run: its facts.
        write_rate: bytes a second that one rank writes, as measured here; None: not measured.
    """
    size = checkpoint_bytes(run.elements)
    of_each, weights = CHECKPOINT_BYTES_PER_ELEMENT * run.elements / run.ranks, WEIGHTS_BYTES_PER_ELEMENT * run.elements
    found = (
        f"{readable_bytes(size)} each, {readable_bytes(of_each)} a rank and {readable_bytes(weights)} of weights by "
        f"rank 0; {run.kept} kept: {readable_bytes(size * run.kept)}"
    )
    if run.background:
        of_all, of_first = copy_bytes(run.elements, run.ranks)
        found += (
            f"; in the background, from a copy in memory of {readable_bytes(of_all)} a rank and "
            f"{readable_bytes(of_first)} more on rank 0"
        )
    if write_rate is None:
        return Finding("checkpoint", "ok", found)
    # Ranks write their parts together, rank 0 the weights too.
    slowest = (CHECKPOINT_BYTES_PER_ELEMENT / run.ranks + WEIGHTS_BYTES_PER_ELEMENT) * run.elements / write_rate
    saves = 2 if run.background else 1  # the one under way is waited for
    needed = saves * slowest + (run.step_s or 0.0)
    found += f"; about {readable_seconds(slowest)} to write, grace {readable_seconds(run.grace_s)}"
    if needed > run.grace_s:
        return Finding(
            "checkpoint", "error", found, "a step and a checkpoint within the grace time, or a stop signal loses steps",
            f"raise the grace time (train.checkpoint.grace_s, grace_s of the site) to {2 * needed:.0f} s",
        )  # fmt: skip
    return Finding("checkpoint", "ok", found)


@dataclass(frozen=True)
class HostFacts:
    """What a node with GPUs holds in the memory of its processors beside the program itself."""

    ranks: int
    """On the node."""
    index_bytes: int
    """Of the manifests, once a node."""
    order_bytes: int
    """Of the order of samples, in each rank."""
    workers: int
    """Loading processes a rank."""
    step_bytes: int
    """Images of a rank's step, as loading processes hand them over."""
    prefetch: int
    """Steps that each of them holds ready."""
    copy_bytes: tuple[int, int] = (0, 0)
    """Of a save in the background: of every rank, and of rank 0 on top."""
    node_bytes: int | None = None
    """Memory of a node; None: not known."""


def host_finding(host: HostFacts) -> Finding:
    """Memory of a node's processors that the data and saves in the background take; libraries come on top."""
    steps = host.ranks * (max(host.workers, 1) * (host.prefetch + 1)) * host.step_bytes
    data = host.index_bytes + host.ranks * host.order_bytes
    copies = host.ranks * host.copy_bytes[0] + host.copy_bytes[1]
    total = steps + data + copies
    found = (
        f"{readable_bytes(total)} a node of {host.ranks} ranks, beside the libraries: {readable_bytes(steps)} of steps "
        f"in {host.ranks * host.workers} loading process(es), {readable_bytes(data)} of manifests and order"
    )
    if copies:
        found += f", {readable_bytes(copies)} of copies that saves in the background are written from"
    if host.node_bytes is None:
        return Finding("host memory", "ok", found)
    found += f"; {readable_bytes(host.node_bytes)} asked for"
    if total > host.node_bytes:
        return Finding(
            "host memory", "error", found, "less than a node has",
            "ask for more (memory of the site), or lower train.stream.workers, train.stream.prefetch, or set "
            "train.checkpoint.background=false",
        )  # fmt: skip
    return Finding("host memory", "ok", found)


def destination_finding(place: Destination) -> Finding:
    """Whether a place can be written and has room."""
    topic = place.name
    if place.problem:
        return Finding(
            topic, "error", f"{place.location}: {place.problem}", "a place that can be written and read",
            "check the path, its permissions, and for s3 AWS_ENDPOINT_URL and the profile; or name another",
        )  # fmt: skip
    if place.free_bytes is None:
        return Finding(topic, "ok", f"{place.location} takes and gives back an object")
    found = f"{place.location} can be written; {readable_bytes(place.free_bytes)} free"
    if place.needed_bytes:
        found += f", {readable_bytes(place.needed_bytes)} needed"
    if place.needed_bytes > place.free_bytes:
        return Finding(topic, "error", found, "room for it", "free some, name another folder, or keep fewer or less")
    return Finding(topic, "ok", found)


def terms_finding(late: str) -> Finding:
    """Whether every weighted loss term begins before the run ends.

    Args:
        late: which do not, in words; empty where all do.
    """
    if late:
        fix = "start them earlier (start_step, start_epoch of train.terms), train longer, or set their weights to 0"
        return Finding("terms", "warning", late, "every term with a weight to begin before the last step", fix)
    return Finding("terms", "ok", "every term with a weight begins before the last step")


NODE_LOCAL = ("tmpfs", "ramfs", "overlay", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs")
"""File systems of one machine's own disks or memory; a server may still give its own to the nodes by NFS."""


def shared_finding(location: str, file_system: str) -> Finding:
    """Whether a run of several nodes lies where all of them can see it; training itself looks again when it starts.

    Args:
        location: of the run, a folder.
        file_system: the type that it is mounted by here; empty: not known.
    """
    found = f"{location} is on {file_system or 'an unknown file system'} here"
    if file_system in NODE_LOCAL:
        return Finding(
            "shared", "warning", f"{found}, which belongs to one machine", "a folder that all nodes share",
            "name one on a shared file system or s3://BUCKET/PREFIX; none needed where this machine serves it to them",
        )  # fmt: skip
    return Finding("shared", "ok", found)
