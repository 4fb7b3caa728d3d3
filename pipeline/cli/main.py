"""Parses the command line and turns errors into one clear line and an exit code.

Nothing heavy is imported here: each command names its handler, which is imported when it runs.
Exit codes: 0 ok, 2 usage, 3 data rejected or run failed, 4 partial (something is quarantined), 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from mcjepa.pipeline.cli.parser import build_parser

OK, USAGE, REJECTED, PARTIAL, INTERRUPTED = 0, 2, 3, 4, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and hasattr(arguments, "overrides") and all("=" in word and not word.startswith("-") for word in rest):
        arguments.overrides, rest = (
            [*arguments.overrides, *rest],
            [],
        )  # argparse stops collecting at an option
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.version:
        from importlib.metadata import version

        print(f"mcjepa {version('mcjepa')}")
        return OK
    if arguments.command is None:
        parser.print_help()
        return USAGE
    if not arguments.handler:
        print(f"mcjepa {arguments.command}: not in this release; see docs/roadmap.md", file=sys.stderr)
        return USAGE
    _start_logging(arguments.verbose)
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from mcjepa.data_prep.errors import DataError
    from mcjepa.pipeline.errors import RunError, UsageError

    module, function = arguments.handler.split(":")
    try:
        code: int = getattr(importlib.import_module(module), function)(arguments)
        return code
    except KeyboardInterrupt:
        print("\nmcjepa: interrupted; the same command continues where it stopped", file=sys.stderr)
        return INTERRUPTED
    except (UsageError, DataError, RunError, OSError) as error:
        if arguments.verbose:
            logging.getLogger(__name__).exception("%s", error)
        print(f"mcjepa: {_one_line(error)}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else REJECTED


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError):
        place = f" at {error.filename}" if error.filename else ""
        advice = "; free some space and rerun" if error.errno == 28 else "; check the path and its permissions"
        return f"{error.strerror or error}{place}{advice}"
    return " ".join(str(error).split())


def _start_logging(verbose: bool) -> None:
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    level = logging.DEBUG if verbose else logging.INFO if rank == "0" else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format=f"%(levelname)s [{rank}] %(message)s", stream=sys.stderr)
    logging.getLogger("mcjepa").setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
