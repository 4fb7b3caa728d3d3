"""A small program in place of a stage: it saves on SIGINT, and fails or finishes as it is told."""

from __future__ import annotations

from pathlib import Path

PROGRAM = """
import os, pathlib, signal, sys, time
folder, behaviour = pathlib.Path(sys.argv[1]), sys.argv[2]
if behaviour == "alone":
    (folder / "new").write_text(os.environ["RAY_ADDRESS"])
    (folder / "new").rename(folder / "on-ray")
    time.sleep(120)
rank, start = os.environ["RANK"], len(list(folder.glob("started-" + os.environ["RANK"] + "-*")))
words = [str(os.getpid()), os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]]
(folder / f"started-{rank}-{start}").write_text(" ".join(words))
def stop(*_):
    time.sleep(1.0)  # a checkpoint
    if behaviour == "wait":
        (folder / "saved").write_text(str(start + 1))
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
if behaviour == "tell":  # what we and the process that started us were given
    for name, pid in (("own", os.getpid()), ("parent", os.getppid())):
        (folder / f"{name}-{rank}").write_bytes(pathlib.Path(f"/proc/{pid}/environ").read_bytes())
if behaviour in ("finish", "tell") or (behaviour == "wait" and start > 0):
    sys.exit(0)
if behaviour == "fail" and rank == "1":
    sys.exit(5)
if behaviour == "once" and rank == "1" and start == 0:
    sys.exit(5)
if behaviour == "once" and (folder / "started-1-0").exists():
    sys.exit(0)
if behaviour == "usage":
    sys.exit(2)
time.sleep(120)
"""
PROGRESS = "import pathlib, sys; p = pathlib.Path(sys.argv[1], 'saved'); print(p.read_text() if p.exists() else -1)"


def write_program(folder: Path) -> None:
    """Writes it as `program.py`; its arguments are the folder and the behaviour."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "program.py").write_text(PROGRAM)
