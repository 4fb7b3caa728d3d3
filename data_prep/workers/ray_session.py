"""Connects to Ray, or runs a private one, and leaves it: whatever happens, nothing of it stays behind.

Without an address a private Ray is started on the loopback interface, with a token of its own and no dashboard or usage
report; a guardian process ends all of it whatever happens to this one, decode children included. It is never stopped by
`ray stop`, which would end every Ray on the machine.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from mcjepa.data_prep.code import code_name, isolated_children
from mcjepa.data_prep.decode.messages import decode_config, encode_config
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.plan.libraries import ABSENT, made_by
from mcjepa.data_prep.process import interruption_kept
from mcjepa.data_prep.settings import DatasetConfig
from mcjepa.data_prep.workers.guardian import EMPTY, VARIABLE, Guardian, clear_abandoned

LOG = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 200 << 20
START_ATTEMPTS = 3
SHUTDOWN_LIMIT_S, DONE_LIMIT_S = 4.0, 60.0
"""For Ray to end after an interruption or an error; after work that is done, which must not fail for a busy machine."""
JOIN_LIMIT_S = 20.0
PRIVATE = {
    "RAY_AUTH_MODE": "token",
    # The one switch that makes every process of a Ray listen on 127.0.0.1 alone, on Linux too.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def cluster_address(configured: str) -> str:
    """The cluster to join: the configured one, else that of RAY_ADDRESS, which a submitted job has; else none."""
    return configured or os.environ.get("RAY_ADDRESS", "")


def callers_ray_runs() -> bool:
    """Whether the caller has a Ray of its own in this process; Ray is not imported to find out."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@contextlib.contextmanager
def running_ray(address: str, workers: int, datasets: tuple[DatasetConfig, ...] = ()) -> Iterator[None]:
    """Connect to Ray at `address`, or run a private one with `workers` processors; ended on the way out.

    Args:
        address: Of a cluster; empty: none.
        workers: Processors of a private one.
        datasets: What will be made there: nodes of a cluster must have the very libraries for it that are here.

    Raises:
        DataError: Ray does not start or answer, or a node runs other code or has other libraries.
    """
    if not address:
        _prepare_private()
    with interruption_kept():
        import ray

    if ray.is_initialized():  # the caller's own: used and left alone
        yield
        return
    on_terminate = signal.getsignal(signal.SIGTERM)
    parent = _short_temporary_folder()
    clear_abandoned(parent)
    guardian = Guardian(parent)
    folder = guardian.folder
    limit_s = SHUTDOWN_LIMIT_S
    try:
        with interruption_kept(), _apart_from_current_folder(folder):
            if address:
                _join(address)
            else:
                _start_patiently(folder, workers)
        if address:
            _require_same_nodes(datasets)
        _OWN.append(folder)
        yield
        limit_s = DONE_LIMIT_S
    finally:
        _OWN.clear()
        _leave_ray(guardian, limit_s)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # ray.init put its own in place


def _leave_ray(guardian: Guardian, limit_s: float) -> None:
    """Let Ray end in its own way; after `limit_s` its processes are killed, whatever it waits for.

    It asks its processes for leave, without a limit: one that hangs would hang this process too, for ever. But when
    they go first, Ray's core ends this process too, with exit code 1 and no word: so an interruption waits as well.
    """
    import ray

    timers: list[threading.Timer] = []

    def end_within(seconds: float) -> None:
        timers.append(threading.Timer(seconds, guardian.end))
        timers[-1].daemon = True
        timers[-1].start()

    with interruption_kept(lambda number, frame: end_within(SHUTDOWN_LIMIT_S)):
        end_within(limit_s)
        try:
            ray.shutdown()
        finally:
            for timer in timers:
                timer.cancel()
            guardian.end()


_OWN: list[str] = []
"""Folder of the Ray that `running_ray` has started or joined; empty where the caller's own is used."""


def ends_with_us() -> bool:
    """Whether what is still at work in Ray ends when `running_ray` does."""
    return bool(_OWN)


@contextlib.contextmanager
def _apart_from_current_folder(folder: str) -> Iterator[None]:
    """Connect from an empty folder below `folder`.

    `ray.init` puts the current folder and that of the driver's script on the search path of all workers, in front:
    what lies there would be imported instead of the code that the driver runs. The guardian knows what is Ray's by it.
    """
    empty = os.path.join(folder, EMPTY)
    os.mkdir(empty)
    before, script = os.open(".", os.O_RDONLY), sys.argv[0]
    try:
        os.chdir(empty)
        sys.argv[0] = os.path.join(empty, "driver")
        os.environ[VARIABLE] = folder
        with isolated_children():
            yield
    finally:
        os.environ.pop(VARIABLE, None)
        sys.argv[0] = script
        os.fchdir(before)
        os.close(before)


def _join(address: str) -> None:
    import ray

    try:
        _wait_for_answer(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(
            f"no Ray cluster can be joined at {address} ({cause}); expected a running one; correct prep.ray_address or "
            "RAY_ADDRESS, and set RAY_AUTH_MODE and RAY_AUTH_TOKEN where it wants a token"
        ) from error


def _wait_for_answer(address: str) -> None:
    """Wait for a cluster that is just starting; by itself Ray tries for minutes whatever the reason.

    Raises:
        OSError: nobody listens there after JOIN_LIMIT_S.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return  # `auto` and the like: Ray's own words
    deadline = time.monotonic() + JOIN_LIMIT_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), JOIN_LIMIT_S).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _require_same_nodes(datasets: tuple[DatasetConfig, ...]) -> None:
    """Refuse a cluster with a node that runs other code than this process, or has other libraries for these datasets.

    Raises:
        DataError: there is one; or one without mcjepa.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def report(expected: str, configs: list[str]) -> tuple[str, dict[str, str]]:
        try:  # sent by value: a node with other code can run it
            from mcjepa.data_prep.code import code_name
        except ImportError as error:
            return f"no mcjepa of this kind ({error})", {}
        if code_name() != expected:
            return code_name(), {}
        from mcjepa.data_prep.workers.ray_session import libraries_here, settings_of

        return code_name(), libraries_here(settings_of(configs))

    remote: Any = ray.remote(report)
    asked = []
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU"):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options = remote.options(num_cpus=0, scheduling_strategy=there)
            reference = options.remote(code_name(), [encode_config(dataset) for dataset in datasets])
            asked.append((node["NodeManagerHostname"], reference))
    for host, reference in asked:
        try:
            code, libraries = ray.get(reference)
        except ray.exceptions.RayError as error:
            LOG.warning("node %s does not tell which code it runs: %s", host, error)
            continue
        compare_code(host, code, code_name())
        compare_libraries(host, libraries, libraries_here(datasets))


def settings_of(configs: list[str]) -> tuple[DatasetConfig, ...]:
    """Datasets' settings that were sent as text, which any node can take."""
    return tuple(decode_config(config) for config in configs)


@functools.cache
def libraries_here(datasets: tuple[DatasetConfig, ...]) -> dict[str, str]:
    """What this process has of the libraries that decide the bytes of these datasets, with versions."""
    found: dict[str, list[str]] = {}
    for dataset in datasets:
        for name, said in made_by(dataset).items():
            found.setdefault(name, []).append(said)
    return {name: "; ".join(dict.fromkeys(said)) for name, said in found.items()}


def compare_libraries(host: str, found: dict[str, str], expected: dict[str, str]) -> None:
    """Refuse a node with other versions of what decides the bytes of shards.

    Raises:
        DataError: it has them.
    """
    other = [
        f"{name} {found.get(name, ABSENT)}, here {said}" for name, said in expected.items() if found.get(name) != said
    ]
    if other:
        raise DataError(
            f"node {host} has other libraries than this process ({'; '.join(other)}); expected the same on all nodes: "
            "they decide the bytes of shards; install the same versions there, or leave that node out"
        )


def compare_code(host: str, found: str, expected: str) -> None:
    """Refuse a node that runs other code.

    Raises:
        DataError: it does.
    """
    if found != expected:
        raise DataError(
            f"node {host} runs {found}, this job {expected}; expected one code on all nodes; "
            "install the same mcjepa there, or leave that node out"
        )


def _prepare_private() -> None:
    """Settings that Ray reads when imported; a token that another cluster left in ~/.ray must not matter."""
    os.environ.update(QUIET)
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ.update(PRIVATE, RAY_AUTH_TOKEN=secrets.token_hex(32))


def _start_patiently(folder: str, workers: int) -> None:
    """Start a private Ray, again where a busy machine did not let it come up within Ray's own fixed 30 s.

    Raises:
        DataError: it does not come up.
    """
    import ray

    for _ in range(START_ATTEMPTS):
        try:
            _start_private(folder, workers)
            return
        except Exception as error:  # Ray raises the bare class
            if "timed out during startup" not in str(error):
                raise
            LOG.warning("Ray did not start in time on this busy machine: trying again")
            ray.shutdown()
    raise DataError(
        f"Ray did not start in {START_ATTEMPTS} attempts of 30 s; expected a few seconds; the machine is too busy: "
        "try again later, or join a cluster with prep.ray_address"
    )


def _start_private(folder: str, workers: int) -> None:
    import ray

    with _without_spare_processes():
        ray.init(
            address="local",
            num_cpus=workers,
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )


@contextlib.contextmanager
def _without_spare_processes() -> Iterator[None]:
    """Start no autoscaler, log monitor and dashboard, for which a private Ray of one machine has no use.

    `ray start` has switches for some of them, `ray.init` has none; they cost 3 s of processor time a start.
    """
    parameter: Any = importlib.import_module("ray._private.parameter")
    node: Any = importlib.import_module("ray._private.node").Node
    params, start_dashboard = parameter.RayParams, node.start_api_server
    parameter.RayParams = functools.partial(params, no_monitor=True, include_log_monitor=False)
    node.start_api_server = lambda self, **options: None
    try:
        yield
    finally:
        parameter.RayParams, node.start_api_server = params, start_dashboard


def _short_temporary_folder() -> str:
    """Ray puts sockets below it, whose paths may have 107 characters: a long TMPDIR is passed over."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 24 else "/tmp"
