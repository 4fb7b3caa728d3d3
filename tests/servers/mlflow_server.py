"""A real MLflow server on the loopback interface, which a test may kill and start again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

START_S = 120.0


class MlflowServer:
    """One server with its SQLite file and artifacts below a folder; not started yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = int(listener.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        """Starts it, on the same port and files as before."""
        words = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination",
            str(self.folder / "artifacts"),
        ]  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        log = (self.folder / "server.log").open("ab")
        self._process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
        log.close()
        if wait:
            self.wait()

    def wait(self) -> None:
        """Returns when it answers."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError(f"the MLflow server did not answer: {(self.folder / 'server.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """kill -9 of the server and its workers; nothing where it is not running."""
        if self._process is not None:
            self.send(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def send(self, number: int) -> None:
        """A signal to the server and its workers; SIGSTOP makes it hang."""
        assert self._process
        os.killpg(self._process.pid, number)
