"""What submitit is told: options of sbatch, and the lines around `srun` in a job's script. Pure."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import Any

from mcjepa.cluster.errors import LaunchError
from mcjepa.cluster.job import Job
from mcjepa.cluster.site import Need, Site, variables, wanted_gpus

NO_TIMEOUTS = 1_000_000
"""submitit's own count of time-outs is not used; `cluster.restarts` counts starts without progress."""
CLEAN = """\
# Slurm before 23.02 takes NIL for a name, and gives the job the login environment in spite of it
for name in $(compgen -e); do
    case "$name" in
        SLURM*|SPANK*|CUDA_VISIBLE_DEVICES|ROCR_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL|ZE_AFFINITY_MASK) ;;
        PATH|HOME|USER|LOGNAME|SHELL|HOSTNAME|PWD|TMPDIR) ;;
        *) unset "$name" ;;
    esac
done
mcjepa_fail() {
    echo "mcjepa: $1 on $HOSTNAME; the job ends here and is not started again" >&2
    exit 1
}"""
SETUP = """\
set -eE
trap 'echo "mcjepa: setup of the site file failed on $HOSTNAME with exit code $?: $BASH_COMMAND; the job ends \
here and is not started again (append || true where a failure does not matter)" >&2' ERR
{lines}
set +eE
trap - ERR"""
MODULES = """\
for place in "$MODULESHOME/init/bash" "$LMOD_PKG/init/bash" /etc/profile.d/{{modules,lmod,z00_lmod}}.sh \
    /usr/share/{{lmod/lmod,modules,Modules}}/init/bash; do
    type module >/dev/null 2>&1 || ! [ -r "$place" ] || . "$place"
done
type module >/dev/null 2>&1 || mcjepa_fail "no module command, expected one for modules (or its start file in setup)"
load_module() {{
    local before="$LOADEDMODULES"
    module load "$1" || mcjepa_fail "module load $1 failed"
    # some versions of the command succeed without loading anything
    case ":$LOADEDMODULES:" in *":$1:"*|*":$1/"*) return ;; esac
    [ "$LOADEDMODULES" != "$before" ] || mcjepa_fail "module load $1 loaded nothing"
}}
{lines}"""
AFTER = """\
code=$?
verdict="$({python} -m mcjepa.cluster.batch end {folder} "$code")"
echo "mcjepa: tasks ended with exit code $code: $verdict" >&2
if [ "$verdict" = requeue ]; then
    # a cancelled job is no longer RUNNING, and must not come back
    [ "$(squeue -h -j "$MCJEPA_JOB" -o %T)" = RUNNING ] && scontrol requeue "$MCJEPA_JOB" && sleep 600
    exit 1
fi
[ "$verdict" = done ] && exit 0
[ "$code" = 0 ] && exit 1
exit "$code\""""


def python_words(site: Site) -> str:
    """The shell words that start Python on a node."""
    return shlex.join([*site.container, site.python or sys.executable])


def lines_before(job: Job, environment: Mapping[str, str]) -> list[str]:
    """Lines of the script before `srun`.

    Args:
        job: what is launched.
        environment: of the launching process; only names that the site inherits are taken from it.
    """
    site = job.site
    kept = {name: environment[name] for name in site.inherit if name in environment}
    exports = {**kept, **{n: environment[n] for n in ("SLURM_CONF",) if n in environment}, **variables(site)}
    exports |= wanted_gpus(job.stage, job.need)
    modules = "\n".join(f"load_module {shlex.quote(module)}" for module in site.modules)
    return [
        *CLEAN.splitlines(),
        # without it srun would hand on what sbatch was told to: nothing
        "export SLURM_EXPORT_ENV=ALL",
        "export PYTHONSAFEPATH=1  # no task imports what happens to lie in the folder it was submitted from",
        "trap : TERM USR1 USR2 CONT  # the tasks get the scheduler's signals, this shell waits for them",
        *(f"export {name}={shlex.quote(value)}" for name, value in exports.items()),
        *(SETUP.format(lines="\n".join(site.setup)).splitlines() if site.setup else ()),
        *(MODULES.format(lines=modules).splitlines() if site.modules else ()),
        'export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"',
        f'settings="$({python_words(site)} -m mcjepa.cluster.batch begin {shlex.quote(str(job.folder))} '
        f'{site.restarts.without_progress})" || exit 1',
        'eval "$settings"',
    ]


def lines_after(job: Job) -> list[str]:
    """Lines of the script after `srun`: queue again, or end with an exit code that says how it went."""
    return AFTER.format(python=python_words(job.site), folder=shlex.quote(str(job.folder))).splitlines()


def slurm_parameters(job: Job, environment: Mapping[str, str]) -> dict[str, Any]:
    """Parameters of submitit's SlurmExecutor."""
    need, site = job.need, job.site
    output = _output_patterns(job)
    found: dict[str, Any] = {
        "job_name": job.name,
        "comment": job.comment,
        "partition": need.partition,
        "account": need.account,
        "qos": need.qos,
        "constraint": need.constraint,
        "nodes": need.nodes,
        "ntasks_per_node": need.tasks_per_node,
        "cpus_per_task": need.cpus_per_task,
        "mem": _megabytes(need.memory_gb),
        "mem_per_cpu": _megabytes(need.memory_per_cpu_gb),
        "time": need.time_min,
        "exclusive": need.exclusive or None,
        "dependency": str(job.after) if job.after else None,
        "signal_delay_s": site.grace_s,
        "stderr_to_stdout": True,
        # since Slurm 22.05 srun does not take over the processors a task of sbatch
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={need.cpus_per_task}", *_gpu_binding(need),
                      *(f"--output={pattern}" for pattern in output[1:])],
        "setup": lines_before(job, environment),
        "teardown": lines_after(job),
        # NIL: nothing of our environment, which may hold secrets, is stored with the job
        "additional_parameters": {
            "export": "NIL", "requeue": True, "kill-on-invalid-dep": "yes", **need.options, **_gpu_options(need),
            **dict(zip(["output"], output, strict=False)),
        },
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def _megabytes(gigabytes: float | None) -> str | None:
    return None if gigabytes is None else f"{round(gigabytes * 1024)}M"


def _gpu_options(need: Need) -> dict[str, str]:
    """The one option of sbatch that asks for GPUs, with further generic resources of the site where it is `gres`."""
    if not need.gpus_per_node:
        return {}
    kind = f"{need.gpu_type}:" if need.gpu_type else ""
    if need.gpus_by == "gres":
        others = str(need.options.get("gres", ""))
        return {"gres": f"gpu:{kind}{need.gpus_per_node}" + (f",{others}" if others else "")}
    share = need.tasks_per_node if need.gpus_by == "gpus-per-task" else 1
    return {need.gpus_by: f"{kind}{need.gpus_per_node // share}"}


def _gpu_binding(need: Need) -> list[str]:
    """Slurm 22.05 reads the number of GPUs a task off what was asked for, and finds none behind a type."""
    if not need.gpus_per_node or need.gpus_by != "gpus-per-task":
        return []
    return [f"--gpu-bind=per_task:{need.gpus_per_node // need.tasks_per_node}"]


def _output_patterns(job: Job) -> list[str]:
    """Slurm's names of the logs of a job and of its tasks, where submitit's would be misread for a % in the folder.

    Raises:
        LaunchError: the folder's name holds what submitit itself replaces.
    """
    folder = str(job.folder)
    if "%" not in folder:
        return []
    if replaced := [mark for mark in ("%j", "%t", "%A", "%a") if mark in folder]:
        raise LaunchError(
            f"the folder of the job is {folder}, expected none with {', '.join(replaced)}, which stand for numbers in "
            "names of logs; choose another run or out"
        )
    number = "%A_%a" if len(job.elements) > 1 else "%j"
    start = f"{folder.replace('%', '%%')}/{number}"
    return [f"{start}_0_log.out", f"{start}_%t_log.out"]
