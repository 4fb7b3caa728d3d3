"""All that a first GPU has to show, by one command in at most ten minutes; each check alone, whatever others do.

    python -m benchmarks.gpu_acceptance --prepare DIR                     on any machine: shards, references, wheels.txt
    python -m benchmarks.gpu_acceptance --out DIR [--prepared DIR]        on the machine with the GPU
    python -m benchmarks.gpu_acceptance --out DIR --device cpu            to the end without one

Without `--prepared` it is put together first, in DIR/prepared. Every check is a process with a time limit of its own:
one that hangs or crashes costs only itself. Each prints a line of JSON with `check`, `status` (passed, failed, skipped)
and its figures, and DIR/results.jsonl has them all; what it said besides is in DIR/NAME.log. The last line is JSON,
`ratio` the share of checks run that passed (bar: 1). `--check NAME` runs one in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

LIMITS_S = {  # check -> module of benchmarks.acceptance, seconds
    "environment": ("environment", 40),
    "operations": ("operations", 60),
    "model": ("model", 90),
    "no_waiting": ("model", 40),
    "engine": ("training", 120),
    "resume": ("training", 90),
    "device_feed": ("environment", 60),
    "step": ("step", 150),
    "loader": ("loading", 90),
    "learn": ("training", 240),
    "refusals": ("environment", 90),
}
TOTAL_S = 600.0
SLOWER = {"cuda": 1, "cpu": 6}
"""What limits are multiplied by: a CPU that others use too still comes to the end."""
REPOSITORY = Path(__file__).resolve().parents[2]


def run_here(name: str, out: Path, prepared: Path, device: str) -> dict[str, Any]:
    """One check in this process: its line."""
    import torch

    from benchmarks.acceptance import Place, Skipped

    try:
        check = getattr(import_module(f"benchmarks.acceptance.{LIMITS_S[name][0]}"), name)
        return {"check": name, "status": "passed", **check(Place(out, prepared, torch.device(device)))}
    except Skipped as reason:
        return {"check": name, "status": "skipped", "reason": str(reason)}
    except Exception as error:
        import traceback

        traceback.print_exc()
        return {"check": name, "status": "failed", "error": f"{type(error).__name__}: {error}"[:500]}


def run_apart(name: str, out: Path, prepared: Path, device: str, limit_s: float) -> dict[str, Any]:
    """One check in a process of its own, which is ended with all that it started when its time is over."""
    words = [sys.executable, "-m", "benchmarks.gpu_acceptance", "--check", name, "--device", device]
    words += ["--out", str(out), "--prepared", str(prepared)]
    environment = dict(os.environ)
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    started = time.monotonic()
    with (out / f"{name}.log").open("w") as log:
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": log, "text": True}
        process = subprocess.Popen(words, cwd=REPOSITORY, env=environment, start_new_session=True, **streams)
        try:
            said, ended = process.communicate(timeout=limit_s)[0], f"ended with code {process.returncode}"
        except subprocess.TimeoutExpired:
            said, ended = "", f"did not end within {limit_s:.0f} s"
        finally:
            _end_session(process)
    line = _last_line(said) or {"check": name, "status": "failed", "error": f"{ended}; see {name}.log"}
    return {**line, "seconds": round(time.monotonic() - started, 1)}


def _end_session(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _last_line(text: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(text.strip().rpartition("\n")[2])
        return found
    except json.JSONDecodeError:
        return None


def run_all(out: Path, prepared: Path, device: str) -> dict[str, Any]:
    """Every check in turn, each line printed and kept; the summary."""
    started, lines = time.monotonic(), []
    with (out / "results.jsonl").open("w", encoding="utf-8") as results:
        for name, (_, limit_s) in LIMITS_S.items():
            left_s = TOTAL_S * SLOWER[device] - (time.monotonic() - started)
            line: dict[str, Any] = {"check": name, "status": "failed", "error": "no time was left for it"}
            if left_s > 5:
                line = run_apart(name, out, prepared, device, min(limit_s * SLOWER[device], left_s))
            lines.append(line)
            for file in (results, sys.stdout):
                print(json.dumps(line), file=file, flush=True)
    by_status = {status: [x["check"] for x in lines if x["status"] == status] for status in ("failed", "skipped")}
    run = len(lines) - len(by_status["skipped"])
    ratio = round(1 - len(by_status["failed"]) / run, 2)
    ended = {"seconds": round(time.monotonic() - started, 1), "device": lines[0].get("device", device)}
    return {"benchmark": "gpu_acceptance", "ratio": ratio, "bar": 1, "run": run, **by_status, **ended}


def main() -> int:
    """Prepare, run one check, or run all; 1 where one has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu-acceptance"), help="folder of results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what is judged")
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="put together what the checks need, and end")
    parser.add_argument("--prepared", type=Path, metavar="DIR", help="what was put together before")
    parser.add_argument("--check", choices=LIMITS_S, help="run this one in this process")
    arguments = parser.parse_args()
    from benchmarks.acceptance.prepare import prepare

    if arguments.prepare:
        print(json.dumps(prepare(arguments.prepare.resolve())))
        return 0
    out = arguments.out.resolve()
    prepared = arguments.prepared.resolve() if arguments.prepared else out / "prepared"
    out.mkdir(parents=True, exist_ok=True)
    if arguments.check:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        line = run_here(arguments.check, out, prepared, arguments.device)
        print(json.dumps(line))
        return int(line["status"] == "failed")
    if not (prepared / "wheels.txt").exists():
        prepare(prepared)
    summary = run_all(out, prepared, arguments.device)
    print(json.dumps(summary))
    return int(bool(summary["failed"]))


if __name__ == "__main__":
    sys.exit(main())
