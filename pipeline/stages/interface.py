"""`mcjepa ui`: the runs of a recipe as a table in MLflow's own interface, served from here or by a server that stands.

The server is MLflow's, of this very Python, bound to 127.0.0.1, and calls home for nothing. It ends with the command.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from mcjepa.cluster.local import Interrupted, run_together
from mcjepa.cluster.rendezvous import free_port
from mcjepa.data_prep.code import isolated_environment
from mcjepa.pipeline.errors import RunError, UsageError
from mcjepa.pipeline.exits import OK
from mcjepa.pipeline.recipe.recipe import Recipe, load_recipe
from mcjepa.pipeline.run.folder import RECIPE, RESOLVED_RECIPE
from mcjepa.pipeline.tracking import look_up, quiet_environment, share_view

HOST = "127.0.0.1"
START_S, LOOK_EVERY_S = 120.0, 0.2
COLUMNS = ("loss", "epe", "epe_zero", "miou", "jf", "seconds", "samples")
"""Ends of the names of metrics that the table begins with, where runs have them."""
MOST_COLUMNS = 8


@dataclass(frozen=True)
class Interface:
    """Where the runs of a recipe are shown."""

    uri: str
    """Of the tracking location."""
    path: str
    """What comes behind the address of the server."""

    @property
    def is_server(self) -> bool:
        """Whether a server stands already."""
        return self.uri.startswith(("http://", "https://"))

    def link(self, port: int = 0) -> str:
        """The link to open; `port` of the server that is started here."""
        return f"{self.uri.rstrip('/') if self.is_server else f'http://{HOST}:{port}'}/{self.path}"


def find_interface(target: str, overrides: Sequence[str]) -> Interface:
    """Where the runs of a target are.

    Args:
        target: a recipe, the folder of its results, or a run folder.
        overrides: of the recipe's keys.

    Raises:
        UsageError: there is neither, nothing has been recorded there yet, or MLflow cannot be used.
    """
    recipe = _recipe_of(target, overrides)
    uri, experiment = recipe.tracking.uri, recipe.tracking.experiment
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not file.is_file():
        raise UsageError(f"no {file}: recipe {recipe.name} has recorded nothing yet; run one of its stages first")
    found = look_up(uri, experiment, recipe.name)
    if not found.experiment_id:
        raise UsageError(f"MLflow at {uri} has no experiment {experiment!r}; run a stage of {recipe.name} first")
    state = table_of_runs(recipe.name if found.tagged else "", found.metrics)
    key = f"mcjepa-{hashlib.sha256(json.dumps(state).encode()).hexdigest()[:12]}"
    kept = share_view(uri, found.experiment_id, key, state)
    return Interface(uri, runs_path(found.experiment_id, state, key if kept else ""))


def _recipe_of(target: str, overrides: Sequence[str]) -> Recipe:
    folder = Path(target)
    if folder.is_dir():
        names = (RESOLVED_RECIPE, RECIPE, f"run/{RECIPE}")
        file = next((folder / name for name in names if (folder / name).is_file()), None)
        if file is None:
            raise UsageError(f"{folder} holds none of {', '.join(names)}; name a recipe, or the folder of its results")
        return load_recipe(str(file), overrides)[0]
    return load_recipe(target, overrides)[0]


def table_of_runs(recipe: str, metrics: Sequence[str]) -> dict[str, Any]:
    """The state of MLflow's table: the runs that are shown, the newest first, and its columns.

    Args:
        recipe: only runs that name it; empty: all.
        metrics: of the runs; some of them become columns.

    >>> table_of_runs("own", ("train/loss", "system/cpu"))["selectedColumns"]
    ['attributes.`Duration`', 'attributes.`Dataset`', 'attributes.`Source`', 'metrics.`train/loss`']
    """
    chosen = ["attributes.`Duration`", "attributes.`Dataset`", "attributes.`Source`"]
    return {
        "searchFilter": f"tags.`mcjepa.recipe` = '{recipe}'" if recipe else "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": [*chosen, *(f"metrics.`{name}`" for name in _columns(metrics))],
    }


def runs_path(experiment_id: str, state: Mapping[str, Any], key: str) -> str:
    """The table of runs in MLflow's interface.

    Args:
        experiment_id: of MLflow.
        state: of the table.
        key: under which MLflow keeps that state; empty where it does not, and then without columns.

    >>> runs_path("1", {}, "k")
    '#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=k'
    """
    query = {"workflowType": "machine_learning"}
    if key:
        query["viewStateShareKey"] = key
    else:
        query |= {name: str(state[name]) for name in ("searchFilter", "orderByKey")} | {"orderByAsc": "false"}
    return f"#/experiments/{experiment_id}/runs?{urlencode(query)}"


def _columns(metrics: Sequence[str]) -> list[str]:
    found = [name for end in COLUMNS for name in metrics if name.rsplit("/", 1)[-1] == end]
    return list(dict.fromkeys(found))[:MOST_COLUMNS]


def serve(interface: Interface, port: int, on_ready: Callable[[str], None]) -> int:
    """Runs MLflow's server until it is interrupted.

    Args:
        interface: of a location that no server stands for.
        port: 0: any that is free.
        on_ready: told the link when the server answers.

    Returns:
        The server's exit code.

    Raises:
        UsageError: there is no such port.
        RunError: it does not come up.
    """
    if not 0 <= port < 2**16:
        raise UsageError(f"--port {port}, expected 1 to 65535, or 0 for any free one; choose another")
    port = port or free_port(os.getpid(), HOST)
    words = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", interface.uri]
    variables = {**isolated_environment(), **quiet_environment(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with tempfile.TemporaryDirectory(prefix="mcjepa-ui-") as folder:
        log = Path(folder) / "server.log"
        ready = threading.Thread(target=_tell, args=(interface.link(port), port, on_ready), daemon=True)
        ready.start()
        try:
            code = run_together([(words, variables)], logs=lambda number: log)
        except Interrupted:  # how a server is meant to end
            return OK
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if code:
        raise RunError(f"MLflow's server ended with {code}: {(lines or [''])[-1][:300]}; is port {port} free?")
    return code


def _tell(link: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Tells the link when the server answers; gives up silently where it ends, which `serve` reports."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2):
                on_ready(link)
                return
        except (urllib.error.URLError, OSError):
            time.sleep(LOOK_EVERY_S)
