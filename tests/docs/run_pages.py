"""Walks the README and the pages, and runs every block that is marked to be run, from a fresh clone of this checkout.

    python -m tests.docs.run_pages --list      what would be run, in its order
    python -m tests.docs.run_pages             all of it: install, quickstart, then the blocks and tables (many minutes)
    python -m tests.docs.run_pages --here      the same in this checkout, with the environment that runs this

In CI the tests run the quick ones, on a quickstart that is cut short (test_documented_commands.py, test_quickstart.py).
What is committed is cloned; what is not is not seen.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.docs.pages import AFTER_QUICKSTART, REPOSITORY, RUN_MARK, blocks, commands_of_tables, name_of, page_paths

SHELL = ("", "sh", "bash", "console")
MARKS = (RUN_MARK, AFTER_QUICKSTART)


class Runnable(NamedTuple):
    """Something that a page says to run."""

    place: str
    language: str
    text: str


def runnables(pages: Mapping[str, str]) -> list[Runnable]:
    """The marked blocks and rows of marked tables of pages (name to text), in their order.

    >>> page = "<!-- run -->\\n```sh\\nls\\n```\\n```sh\\nrm x\\n```\\n"
    >>> [each.text for each in runnables({"a.md": page})]
    ['ls']
    """
    found = []
    for page, text in pages.items():
        found += [
            Runnable(block.place, block.language, block.text) for block in blocks(page, text) if block.mark in MARKS
        ]
        found += [Runnable(f"{page}: {command.split()[1]}", "sh", command) for command in commands_of_tables(text)]
    return found


def run(each: Runnable, folder: Path, programs: Path) -> int:
    """Runs one in a folder, with an environment's programs first on PATH; its exit code."""
    words = ["bash", "-euo", "pipefail", "-c"] if each.language in SHELL else [str(programs / "python"), "-c"]
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([*words, each.text], cwd=folder, env=environment, stdin=subprocess.DEVNULL).returncode


def main() -> int:
    """1 where something fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="only print what would be run")
    parser.add_argument("--here", action="store_true", help="no clone and no installation")
    arguments = parser.parse_args()
    found = runnables({name_of(path): path.read_text(encoding="utf-8") for path in page_paths()})
    if arguments.list:
        print("\n".join(f"{each.place}\n    {each.text.strip().splitlines()[0]}" for each in found))
        return 0
    with tempfile.TemporaryDirectory(prefix="mcjepa-pages-") as temporary:
        folder, programs = REPOSITORY, Path(sys.executable).parent
        begin = Runnable("mcjepa quickstart", "sh", "mcjepa quickstart")
        if not arguments.here:
            folder = Path(temporary) / "clone"
            subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(folder)], check=True)
            programs, begin = folder / ".venv" / "bin", Runnable("make quickstart", "sh", "make quickstart")
        failed = []
        for each in (begin, *found):
            began = time.monotonic()
            code = run(each, folder, programs)
            print(f"{code:>4}  {time.monotonic() - began:6.1f} s  {each.place}", flush=True)
            failed += [each.place] if code else []
            if code and each is begin:
                break
    print(f"{len(failed)} of {len(found) + 1} failed" + "".join(f"\n  {place}" for place in failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
