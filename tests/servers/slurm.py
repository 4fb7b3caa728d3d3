"""A real Slurm of one's own for tests: slurmctld and some slurmd on this machine, on loopback addresses.

Every node is a slurmd in a namespace of its own for host name and /etc/hosts, on a loopback address of its own, and
claims more processors than there are, and GPUs that are /dev/null. With accounting there are slurmdbd and MariaDB too.
Needs root and the Debian packages slurmctld, slurmd, slurm-client and munge, and for accounting slurmdbd,
mariadb-server-core and mariadb-client-core (`.ci/run` installs them). All state is below one folder; daemons run in the
foreground and die with the process that started them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil

from mcjepa.data_prep.process import end_with_parent

PROGRAMS = ("slurmctld", "slurmd", "munged", "munge", "sbatch", "srun", "unshare", "mount")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb", "mariadb-install-db", "sacct", "sacctmgr")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
READY_S = 60.0
SLURMD_TIMEOUT_S = 9
"""Silence of a node after which it is down and its jobs are queued again."""
KILL_WAIT_S = 5
CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire also sets how long a requeued job waits before it starts again (default 120 s)
AuthInfo=socket={folder}/munge/sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd.%n
# no cgroups, no affinity
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=200000,batch_sched_delay=0
# ids that never repeat: submitit finds results by them
FirstJobId={first_job}
ReturnToService=2
SlurmdTimeout={slurmd_timeout}
MessageTimeout=10
KillWait={kill_wait}
JobRequeue=1
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MaxArraySize=100
"""
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge/sock
AccountingStorageEnforce=qos
"""
DATABASE_DAEMON = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/log/slurmdbd
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""
PARTITIONS = """\
PartitionName=main Nodes={names} Default=YES State=UP PriorityTier=10 PreemptMode=REQUEUE GraceTime=30
PartitionName=urgent Nodes={names} State=UP PriorityTier=20 PreemptMode=OFF
PartitionName=spare Nodes={names} State=UP PriorityTier=5 PreemptMode=CANCEL GraceTime=0
PartitionName=short Nodes={names} State=UP PriorityTier=10 PreemptMode=REQUEUE MaxTime=30 MaxNodes=2{qos}
"""
GPU_TYPE = "a100"


class SlurmNotRunnable(RuntimeError):
    """Slurm is not installed here, we are not root, or it does not start."""


class SlurmCluster:
    """One controller and its nodes node1, node2, …

    Args:
        folder: where all their files are; a short path.
        nodes: how many.
        cpus: processors that each claims.
        gpus: pretended GPUs of each.
        accounting: whether a database keeps jobs; then there is a QOS `night` besides `normal`.
    """

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 4, gpus: int = 0, accounting: bool = False) -> None:
        self.folder, self.nodes, self._cpus, self.gpus, self.accounting = folder, nodes, cpus, gpus, accounting
        self._subnet = 2 if accounting else 1  # two clusters may stand side by side
        self._ports = _free_ports(nodes + 2)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._namespaces: dict[int, set[str]] = {node: set() for node in range(1, nodes + 1)}

    @property
    def variables(self) -> dict[str, str]:
        """What its commands need in the environment."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": PATH}

    def start(self) -> None:
        """Starts everything and waits until all nodes are idle.

        Call it in the main thread: the kernel ends the daemons with the thread that started them.

        Raises:
            SlurmNotRunnable: something is missing, or not all nodes are idle in time.
        """
        programs = (*PROGRAMS, *ACCOUNTING_PROGRAMS) if self.accounting else PROGRAMS
        missing = [name for name in programs if not shutil.which(name, path=PATH)]
        if missing or os.geteuid() != 0:
            raise SlurmNotRunnable(
                f"{', '.join(missing)} not found"
                if missing
                else "not root, which starting slurmd as several nodes takes"
            )
        for part in ("munge", "ctld", "log"):
            (self.folder / part).mkdir(mode=0o755, exist_ok=True)
        self._write_files()
        self._daemon("munged", self._munged())
        self._wait("munged", lambda: (self.folder / "munge" / "sock").exists())
        if self.accounting:
            self._start_accounting()
        self._daemon("slurmctld", ["slurmctld", "-D", "-i"])
        for node in range(1, self.nodes + 1):
            self.start_node(node)
        self.wait_idle()

    def _start_accounting(self) -> None:
        """MariaDB on a socket alone, slurmdbd, and what an administrator enters once."""
        data, socket_path = self.folder / "db", f"{self.folder}/db.sock"
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db",
             "--auth-root-authentication-method=normal"],
            env={**os.environ, **self.variables}, check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        self._daemon(
            "mariadbd",
            ["mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={socket_path}",
             "--skip-networking", "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M",
             "--innodb-flush-log-at-trx-commit=0", "--performance-schema=OFF"],
        )  # fmt: skip
        client = ("mariadb", "--no-defaults", "-S", socket_path, "-uroot", "-e")
        self._wait("mariadbd", lambda: self.succeeds(*client, "create database if not exists slurm"))
        self._daemon("slurmdbd", ["slurmdbd", "-D"], {"MYSQL_UNIX_PORT": socket_path})
        self._wait("slurmdbd", lambda: self.succeeds("sacctmgr", "-n", "show", "cluster"))
        for words in (
            "cluster tests", "qos night", "account lab cluster=tests", "user root account=lab cluster=tests",
            "user nobody account=lab cluster=tests",
        ):  # fmt: skip
            self.run("sacctmgr", "-i", "-n", "add", *words.split())
        self.run("sacctmgr", "-i", "-n", "modify", "account", "lab", "set", "qos=normal,night")

    def start_node(self, node: int) -> None:
        """Starts the slurmd of a node, the first time or again."""
        (self.folder / f"spool.node{node}").mkdir(exist_ok=True)
        inside = f"mount --bind {self.folder}/hosts /etc/hosts && hostname node{node} && exec slurmd -D -N node{node}"
        self._daemon(f"node{node}", ["unshare", "--uts", "--mount", "sh", "-c", inside])

    def wait_idle(self, within_s: float = READY_S) -> None:
        """Waits until every node is idle."""
        self._wait(
            "nodes",
            lambda: self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T").split() == ["idle"] * self.nodes,
            within_s,
        )

    def kill_daemon(self, node: int) -> None:
        """kill -9 of a node's slurmd alone; its jobs' processes live on."""
        self._kill(f"node{node}")

    def kill_node(self, node: int) -> None:
        """kill -9 of all that runs on a node: what its sudden end looks like to the others."""
        self._kill(f"node{node}")
        for process in self.processes(node):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def processes(self, node: int | None = None) -> list[psutil.Process]:
        """Processes of jobs, step daemons included, on one node or on all."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf"
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                variables = Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace").split("\0")
                step = process.name().startswith("slurmstepd") and str(self.folder) in " ".join(variables)
                task = mark in variables and any(v.startswith("SLURM_JOB_ID=") for v in variables)
                if (step or task) and (node is None or self._is_on(process, node)):
                    found.append(process)
        return found

    def run(self, *words: str) -> str:
        """Output of one of its commands."""
        answer = subprocess.run(words, env={**os.environ, **self.variables}, capture_output=True, text=True, timeout=60)
        return answer.stdout.strip()

    def succeeds(self, *words: str) -> bool:
        """Whether one of its commands ends with 0."""
        environment = {**os.environ, **self.variables}
        return subprocess.run(words, env=environment, capture_output=True, timeout=60).returncode == 0

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, …"""
        return self.run("squeue", "-h", "--states=all", "-j", job, "-o", "%T")

    def wait_state(self, job: str, *states: str, within_s: float = 120.0) -> str:
        """Waits until a job is in one of the states, and returns it."""
        self._wait(f"job {job} to be {states}", lambda: self.state(job) in states, within_s)
        return self.state(job)

    def files(self) -> dict[Path, bytes]:
        """What is below its folder now: logs, scripts, and the state that it keeps."""
        found = {}
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):  # it renames files while it runs
                if path.is_file():
                    found[path] = path.read_bytes()
        return found

    def stop(self) -> None:
        """Ends jobs, nodes and controller."""
        if "slurmctld" in self._daemons:
            with suppress(subprocess.TimeoutExpired):
                self.run("scancel", "--full", "-u", "root")
        for node in range(1, self.nodes + 1):
            self.kill_node(node)
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for name in list(self._daemons):
            self._kill(name)

    def _is_on(self, process: psutil.Process, node: int) -> bool:
        """Whether a process is a node's: it is in a namespace of its slurmd, this one or one before."""
        with suppress(OSError):
            return os.readlink(f"/proc/{process.pid}/ns/uts") in self._namespaces[node]
        return False

    def _munged(self) -> list[str]:
        key = self.folder / "munge" / "key"
        if not key.exists():
            key.touch(mode=0o400)
            key.write_bytes(secrets.token_bytes(1024))
        names = {
            "--key-file": "key",
            "--socket": "sock",
            "--pid-file": "pid",
            "--log-file": "log",
            "--seed-file": "seed",
        }
        return ["munged", "-F", "--num-threads=2", *(f"{k}={self.folder}/munge/{v}" for k, v in names.items())]

    def _write_files(self) -> None:
        ports = self._ports
        text = CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            port=ports[0],
            folder=self.folder,
            first_job=int(time.time()) % 60_000_000 + 1,
            slurmd_timeout=SLURMD_TIMEOUT_S,
            kill_wait=KILL_WAIT_S,
        )
        dbd = {"folder": self.folder, "port": ports[-1]}
        text += ACCOUNTING.format(**dbd) if self.accounting else "AccountingStorageType=accounting_storage/none\n"
        gres = f"Gres=gpu:{GPU_TYPE}:{self.gpus} " if self.gpus else ""
        text += "GresTypes=gpu\n" if self.gpus else ""
        for node in range(1, self.nodes + 1):
            text += (
                f"NodeName=node{node} NodeHostname=node{node} NodeAddr={self._address(node)} Port={ports[node]} "
                f"CPUs={self._cpus} RealMemory=6000 {gres}State=UNKNOWN\n"
            )
        names = f"node[1-{self.nodes}]"
        text += PARTITIONS.format(names=names, qos=" AllowQos=normal" if self.accounting else "")
        self._write_gpus(names)
        (self.folder / "slurmdbd.conf").touch(mode=0o600)
        (self.folder / "slurmdbd.conf").write_text(DATABASE_DAEMON.format(**dbd))
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        hosts = [f"{self._address(node)} node{node}" for node in range(1, self.nodes + 1)]
        (self.folder / "hosts").write_text(Path("/etc/hosts").read_text() + "\n".join(hosts) + "\n")

    def _address(self, node: int) -> str:
        return f"127.0.{self._subnet}.{node}"

    def _write_gpus(self, names: str) -> None:
        """GPUs that are /dev/null: slurmd wants devices whose names end in their index."""
        if not self.gpus:
            return
        for index in range(self.gpus):
            os.mknod(self.folder / f"gpu{index}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        files = f"{self.folder}/gpu[0-{self.gpus - 1}]"
        (self.folder / "gres.conf").write_text(f"NodeName={names} Name=gpu Type={GPU_TYPE} File={files}\n")

    def _daemon(self, name: str, words: list[str], variables: dict[str, str] | None = None) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                words,
                env={**os.environ, **self.variables, **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(end_with_parent, os.getpid()),
            )
        if name.startswith("node"):
            self._wait(name, lambda: self._entered(name))

    def _entered(self, name: str) -> bool:
        """Whether a node's slurmd is in its own namespace, which is noted."""
        place = os.readlink(f"/proc/{self._daemons[name].pid}/ns/uts")
        if place == os.readlink("/proc/self/ns/uts"):
            return False
        self._namespaces[int(name.removeprefix("node"))].add(place)
        return True

    def _kill(self, name: str) -> None:
        daemon = self._daemons.pop(name, None)
        if daemon:
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()

    def _wait(self, what: str, come: Callable[[], bool], within_s: float = READY_S) -> None:
        deadline = time.monotonic() + within_s
        while not come():
            dead = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = "\n".join(p.read_text(errors="replace")[-600:] for p in sorted((self.folder / "log").iterdir()))
                raise SlurmNotRunnable(
                    f"waited for {what}; ended: {dead}\n{self.run('squeue', '--states=all')}\n{logs}"
                )
            time.sleep(0.1)


@contextmanager
def running_slurm(nodes: int = 2, gpus: int = 0, accounting: bool = False) -> Iterator[SlurmCluster]:
    """A cluster, gone with its files at the end."""
    folder = Path(tempfile.mkdtemp(prefix="mcjepa-slurm-", dir="/tmp"))
    folder.chmod(0o755)
    cluster = SlurmCluster(folder, nodes, gpus=gpus, accounting=accounting)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Ports below those that the system gives to clients, free on all addresses."""
    free: list[int] = []
    for port in range(17_000 + os.getpid() % 1000, 20_000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            free.append(port)
        if len(free) == count:
            return free
    raise SlurmNotRunnable("no free ports between 17000 and 20000")
