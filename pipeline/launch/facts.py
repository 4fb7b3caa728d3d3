"""Facts of a preflight: reads manifests, a little of the shards, disks and addresses; leaves no files behind."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mcjepa.cluster.preflight.data import StreamFacts
from mcjepa.cluster.preflight.findings import Finding
from mcjepa.cluster.preflight.run import Destination
from mcjepa.data_prep.dataset.manifest import newest_revision
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.layout import manifest_key, shard_key
from mcjepa.data_prep.storage import FolderStore, absolute_location, local_path, open_store
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.run.folder import CHECKPOINTS
from mcjepa.pipeline.settings.stream import SourceConfig, StreamConfig
from mcjepa.pipeline.settings.train import BUCKET_ELEMENTS

READ_BYTES, READ_SHARDS = 4 << 20, 4
WRITE_BYTES = 32 << 20
CONTACT_S = 3.0


def read_streams(config: StreamConfig, seed: int) -> tuple[list[StreamFacts], list[Finding]]:
    """What the run's datasets hold, by their manifests; one that cannot be read is an error among the findings."""
    from mcjepa.pipeline.stream.samples import pair_stream, view_stream

    streams, findings = [], []
    for name, batch, build in (
        ("pairs", config.pair_batch, pair_stream), ("views", config.view_batch, view_stream),
    ):  # fmt: skip
        if not batch:
            continue
        try:
            stream = build(config, seed)
        except (DataError, UsageError) as error:
            findings.append(Finding("dataset", "error", f"{name}: {error}"))
            continue
        datasets, summary = stream.catalogue.datasets, stream.order.describe()
        ids = ", ".join(f"{each.dataset_id[:12]} ({each.location})" for each in datasets[:3])
        more = f" and {len(datasets) - 3} more" if len(datasets) > 3 else ""
        findings.append(Finding("dataset", "ok", f"{name}: {ids}{more}"))
        streams.append(
            StreamFacts(
                name=name,
                datasets=len(datasets),
                samples=sum(source.samples for source in stream.catalogue.counts),
                shards=sum(len(each.shards) for each in datasets),
                bytes=sum(int(np.sum(each.bytes)) for each in datasets),
                batch=batch,
                lanes=summary.lanes,
                steps_per_epoch=summary.steps_per_epoch,
                tail=summary.tail,
                passes=summary.passes,
                remote=any(not isinstance(open_store(each.location), FolderStore) for each in datasets),
                manifest_bytes=sum(map(_manifest_bytes, getattr(config, name))),
                turns=1 if config.sampling == "combined" else len(config.batches),
            )
        )
    return streams, findings


def _manifest_bytes(source: SourceConfig) -> int:
    store = open_store(source.location)
    return store.size(manifest_key(source.revision or newest_revision(store)))


def read_rate(config: StreamConfig) -> float | None:
    """Bytes a second at which the start of some shards was read here; None where nothing could be.

    A shard that was read or written a moment ago comes from the machine's memory: then it is an upper bound.
    """
    from mcjepa.pipeline.stream.catalogue import open_catalogue

    total, spent = 0, 0.0
    with contextlib.suppress(DataError):
        for dataset in open_catalogue([*config.pairs, *config.views]).datasets:
            store = open_store(dataset.location)
            for shard in dataset.shards[:READ_SHARDS]:
                started = time.perf_counter()
                total += len(store.read_range(shard_key(shard), 0, READ_BYTES))
                spent += time.perf_counter() - started
    return total / spent if total else None


def load_seconds(config: StreamConfig, seed: int, ranks: int) -> float | None:
    """Seconds of a core in which a rank's share of a step was read, decoded and augmented here; None where it cannot.

    Args:
        config: of the run.
        seed: of the run.
        ranks: of the run; they divide its batches.
    """
    from mcjepa.pipeline.stream.samples import pair_stream, view_stream

    spent = []
    try:
        for batch, build in ((config.pair_batch, pair_stream), (config.view_batch, view_stream)):
            if batch:
                with contextlib.closing(build(config, seed)) as stream:
                    stream.read(0, 0, ranks, bool)  # opens and imports
                    started = time.process_time()
                    stream.read(1, 0, ranks, bool)
                    spent.append(time.process_time() - started)
    except (DataError, UsageError):
        return None
    return sum(spent) if config.sampling == "combined" else max(spent)


def probe_destination(name: str, location: str, needed_bytes: int = 0) -> Destination:
    """Writes an object there, reads it back and removes it; a folder that is not there yet is not made."""
    key, content = f".mcjepa-probe-{secrets.token_hex(6)}", secrets.token_bytes(64)
    try:
        if isinstance(open_store(location), FolderStore):
            folder = _nearest_folder(local_path(absolute_location(location)))
            with tempfile.NamedTemporaryFile(dir=folder, prefix=key) as file:
                file.write(content)
                file.flush()
            return Destination(name, location, shutil.disk_usage(folder).free, "", needed_bytes)
        store = open_store(location)
        key = key.removeprefix(".")  # hidden names are not listed by stores
        store.write(key, content)
        same = store.read(key) == content
        store.remove(key)
    except (DataError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Destination(name, location, None, f"cannot be written: {reason}", needed_bytes)
    return Destination(name, location, None, "" if same else "gave back other bytes than were written", needed_bytes)


def checkpoints_there(run: str) -> int:
    """Checkpoints that the folder of a run, or of a sweep's runs, holds already; their room is no longer free."""
    folder = local_path(absolute_location(run))
    return sum(path.is_dir() for below in ("", "*/") for path in folder.glob(f"{below}{CHECKPOINTS}/step-*"))


def file_system(location: str, mounts: str = "/proc/self/mounts") -> str:
    """Type of the file system that a folder lies on, such as `ext4` or `nfs4`; empty where the system does not tell.

    Args:
        location: a folder; the nearest above it that is there counts.
        mounts: the table of mounts.
    """
    try:
        folder = _nearest_folder(local_path(absolute_location(location))).resolve()
        lines = Path(mounts).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    places = [(place.replace("\\040", " "), kind) for _, place, kind, *_ in (line.split() for line in lines)]
    fitting = [(place, kind) for place, kind in places if folder.is_relative_to(place)]
    return max(fitting, key=lambda each: len(each[0]), default=("", ""))[1]


def _nearest_folder(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(20, f"{folder} is a file, where a folder is needed")
    return folder


def write_rate(location: str) -> float | None:
    """Bytes a second at which a file of 32 MiB was written and synchronised; None in a bucket."""
    try:
        if not isinstance(open_store(location), FolderStore):
            return None
        block = secrets.token_bytes(1 << 20)
        with tempfile.NamedTemporaryFile(dir=_nearest_folder(local_path(absolute_location(location)))) as file:
            started = time.perf_counter()
            for _ in range(WRITE_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return WRITE_BYTES / (time.perf_counter() - started)
    except (DataError, OSError):
        return None


def tracking_finding(uri: str) -> Finding:
    """Whether MLflow can be reached; it may be away, a run's records then wait in its spool."""
    if uri.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(_request(f"{uri.rstrip('/')}/health"), timeout=CONTACT_S):
                return Finding("tracking", "ok", f"MLflow answers at {uri}")
        except (urllib.error.URLError, OSError, ValueError) as error:
            return Finding(
                "tracking", "warning", f"MLflow at {uri} does not answer: {error}",
                "a server; the run goes on without it, its records wait in RUN/spool",
                "start it or correct tracking.uri; later `mcjepa tracking sync RUN`",
            )  # fmt: skip
    if uri.startswith("sqlite:///"):
        place = probe_destination("tracking", str(Path(uri.removeprefix("sqlite:///")).parent))
        if place.problem:
            return Finding(
                "tracking", "error", f"{uri}: {place.problem}", "a folder that can be written", "correct tracking.uri"
            )
    return Finding("tracking", "ok", f"MLflow in {uri}")


def _request(url: str) -> urllib.request.Request:
    """A request with the user and password of MLflow's variables, where they are set."""
    request = urllib.request.Request(url)
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    if user and password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    return request


def password_finding(uri: str, setup: Sequence[str]) -> list[Finding]:
    """A warning where jobs of Slurm would not have the password that we reach MLflow with."""
    if not uri.startswith(("http://", "https://")) or setup or not os.environ.get("MLFLOW_TRACKING_PASSWORD"):
        return []
    return [
        Finding(
            "password", "warning", "MLflow's password is yours alone: jobs of Slurm get no secret from here",
            "a line of `setup` that reads it from a file of yours",
            "add setup: ['source $HOME/.mcjepa-secrets'] to the site file, with export MLFLOW_TRACKING_USERNAME=… and "
            "MLFLOW_TRACKING_PASSWORD=… in that file",
        )
    ]  # fmt: skip


def device_memory(on_gpu: bool) -> int | None:
    """Memory of a GPU of this machine, or of the machine as far as this process may use it."""
    if on_gpu:
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
    import psutil

    limits = [int(psutil.virtual_memory().total)]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text(encoding="utf-8")))
    return min(limits)


def gpus_here() -> int:
    """GPUs of this machine."""
    import torch

    return int(torch.cuda.device_count())


def bucket_options(options: dict[str, Any], stage: int) -> tuple[int, bool]:
    """DeepSpeed's bucket in elements and whether reductions overlap, as the recipe's options set them."""
    zero: dict[str, Any] = options.get("zero_optimization") or {}
    return int(zero.get("reduce_bucket_size", BUCKET_ELEMENTS)), bool(zero.get("overlap_comm", stage == 3))
