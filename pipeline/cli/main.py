"""Parses the command line, runs the command, and turns errors into one clear line and an exit code.

Nothing heavy is imported here: each command names its handler, which is imported when it runs.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from mcjepa.data_prep.errors import nearest_name
from mcjepa.pipeline.cli.commands import COMMANDS, DESCRIPTION, GROUPS
from mcjepa.pipeline.exits import INTERRUPTED, MEANINGS, OK, PIPE_CLOSED, REJECTED, USAGE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = parse(list(sys.argv[1:] if argv is None else argv))
    if arguments.version:
        from importlib.metadata import version

        print(f"mcjepa {version('mcjepa')}")
        return OK
    if arguments.command is None:
        build_parser().print_help()
        return USAGE
    _start_logging(arguments.verbose)
    return _run(arguments)


def parse(words: list[str]) -> argparse.Namespace:
    """A command line's arguments; `argv` is the words themselves. Leaves the process where they are not understood."""
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    parser = build_parser()
    wrong = unknown_name(words)
    if wrong:
        parser.exit(USAGE, f"mcjepa: {wrong}\n")
    arguments, rest = parser.parse_known_args(words)
    if rest and hasattr(arguments, "overrides") and all("=" in word and not word.startswith("-") for word in rest):
        arguments.overrides, rest = [*arguments.overrides, *rest], []  # argparse stops collecting at an option
    if rest:
        odd = [word for word in rest if word.startswith("-") or "=" not in word]
        parser.exit(USAGE, f"mcjepa: {_not_taken((odd or rest)[0], arguments)}\n")
    arguments.argv = words
    return arguments


def _not_taken(word: str, arguments: argparse.Namespace) -> str:
    """What is wrong with a word that a command does not take, with the nearest of its options."""
    name = " ".join(filter(None, (arguments.command, getattr(arguments, "verb", None))))
    typed = f"mcjepa {name}".rstrip()
    if not word.startswith("-"):
        return f"`{typed}` takes no {word!r}; `{typed} --help` says what it takes; quote what belongs together"
    own = next((command.options for command in COMMANDS if command.name == name), ())
    options = [each for names, _ in own for each in names if each.startswith("-")] or ["--version", "--verbose"]
    wrong = word.partition("=")[0]
    return f"`{typed}` has no option {wrong!r}: {nearest_name(wrong, [*options, '--help'])}"


def build_parser() -> argparse.ArgumentParser:
    """The whole command line as argparse knows it."""
    parser = argparse.ArgumentParser(
        prog="mcjepa",
        description=DESCRIPTION,
        epilog="exit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("-v", "--verbose", action="store_true", help="more detail, and tracebacks of errors")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    groups: dict[str, Any] = {}
    for command in COMMANDS:
        group, _, verb = command.name.rpartition(" ")
        if group and group not in groups:
            purpose = GROUPS[group]
            below = commands.add_parser(group, help=purpose, description=_sentence(purpose))
            groups[group] = below.add_subparsers(dest="verb", metavar="VERB", required=True)
        own = (groups[group] if group else commands).add_parser(
            verb,
            help=command.purpose,
            description=_sentence(command.purpose),
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        own.set_defaults(handler=command.handler)
        for names, settings in command.options:
            own.add_argument(*names, **settings)
    return parser


def _sentence(purpose: str) -> str:
    return f"{purpose[0].upper()}{purpose[1:]}."


def unknown_name(words: list[str]) -> str:
    """What is wrong with a command line whose command or verb is unknown, with the nearest one; else nothing."""
    named = [word for word in words if word not in ("-v", "--verbose")]
    if not named or named[0].startswith("-"):
        return ""
    command, *rest = named
    known = list(dict.fromkeys(each.name.split()[0] for each in COMMANDS))
    if command not in known:
        return f"no command {command!r}: {nearest_name(command, known)}"
    verbs = [each.name.split()[1] for each in COMMANDS if each.name.startswith(f"{command} ")]
    if verbs and rest and not rest[0].startswith("-") and rest[0] not in verbs:
        return f"no verb {rest[0]!r} of `mcjepa {command}`: {nearest_name(rest[0], verbs)}"
    return ""


def _run(arguments: argparse.Namespace) -> int:
    from mcjepa.data_prep.errors import DataError
    from mcjepa.pipeline.errors import RunError, UsageError

    try:
        code: int = _load_handler(arguments.handler)(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        print("\nmcjepa: interrupted; the same command continues where it stopped", file=sys.stderr)
        return INTERRUPTED
    except (UsageError, DataError, RunError, OSError) as error:
        if arguments.verbose:
            logging.getLogger(__name__).exception("%s", error)
        print(f"mcjepa: {one_line(error)}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else REJECTED


def _load_handler(place: str) -> Any:
    """What does a command. A rank loads torch with it, which takes seconds: were an interrupt lost in them, the other
    ranks would end, and this one would wait for them."""
    from mcjepa.data_prep.process import interruption_kept

    module, function = place.split(":")
    with interruption_kept():
        handler = getattr(importlib.import_module(f"mcjepa.pipeline.cli.{module}"), function)
        if "RANK" in os.environ:
            import torch  # noqa: F401
    return handler


def one_line(error: Exception) -> str:
    """An error as one line. The system's own words get a piece of advice; those of this project have theirs.

    >>> one_line(FileNotFoundError(2, "No such file or directory", "r.yaml"))
    'No such file or directory at r.yaml; check the path and its permissions'
    >>> one_line(OSError("no folder below /tmp; expected to write there; set TMPDIR"))
    'no folder below /tmp; expected to write there; set TMPDIR'
    """
    if isinstance(error, FileNotFoundError) and not error.filename and not _is_here():
        return "the current folder was removed, expected one that is there; change to another"
    if isinstance(error, OSError) and error.strerror:
        place = f" at {error.filename}" if error.filename else ""
        advice = "free some space and rerun" if error.errno == errno.ENOSPC else "check the path and its permissions"
        return f"{error.strerror}{place}; {advice}"
    return " ".join(str(error).split()) or type(error).__name__


def _is_here() -> bool:
    """Whether the current folder still exists."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _start_logging(verbose: bool) -> None:
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    level = logging.DEBUG if verbose else logging.INFO if rank == "0" else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format=f"%(levelname)s [{rank}] %(message)s", stream=sys.stderr)
    logging.getLogger("mcjepa").setLevel(level)
