"""The `mcjepa` commands that pages name, parsed by the real parser and their keys checked by the real recipe."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import re
import shlex
from collections.abc import Iterator, Sequence

from mcjepa.pipeline.cli.main import build_parser
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.files import shipped_recipes
from mcjepa.pipeline.recipe.recipe import load_recipe

PROGRAMS = ("mcjepa", ".venv/bin/mcjepa")
ENDS = ("|", "&&", "||", ";", "&", ">", "2>&1", "(", ")")
LAUNCHERS = ("srun", "-m", "…")
SYNOPSIS_KEYS = ("key=value", "a.b=c", "name=value")
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*")
WRONG_TYPE = re.compile(r"(?:invalid \w+ value|argument --[\w-]+): '([A-Z]+)'(?:$|, expected )")
STAND_IN = "sample"
"""The recipe whose keys count where a page says RECIPE: it has every part."""
MISSING = ("the following arguments are required", "expected one argument", "expected at least one argument")


class CommandError(ValueError):
    """A documented command that the command line would refuse."""


def commands_in(text: str) -> Iterator[list[str]]:
    """The argument vectors of all `mcjepa` commands in shell text, continued lines joined, comments left out."""
    for line in text.replace("\\\n", " ").split("\n"):
        line = line.strip().removeprefix("$ ")
        if not any(program in line for program in PROGRAMS):
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise CommandError(f"{line!r} is no shell line: {error}") from error
        yield from _commands_of(words)


def _commands_of(words: Sequence[str]) -> Iterator[list[str]]:
    at = 0
    while at < len(words):
        before = words[at - 1] if at else ENDS[0]
        if words[at] in PROGRAMS and (before in (*ENDS, *LAUNCHERS) or "=" in before):
            rest = itertools.takewhile(lambda word: word not in ENDS, words[at + 1 :])
            argv = list(rest)
            at += len(argv)
            yield argv
        at += 1


def expand(argv: Sequence[str]) -> list[list[str]]:
    """A synopsis as commands: `[…]` is given, `a|b` becomes two commands, dots and `key=value` are left out."""
    words: list[list[str]] = []
    for word in argv:
        choices = [choice.removesuffix("...").removesuffix("…") for choice in _without_brackets(word).split("|")]
        choices = [choice for choice in choices if choice and choice not in SYNOPSIS_KEYS]
        if choices:
            words.append(choices)
    return [list(chosen) for chosen in itertools.product(*words)]


def _without_brackets(word: str) -> str:
    if word.startswith("["):
        word = word.replace("]", "", 1)[1:]
    while word.endswith("]") and word.count("]") > word.count("["):
        word = word[:-1]
    return word


def check(argv: Sequence[str], whole: bool) -> None:
    """Parses one command and checks the keys of its recipe or benchmark.

    Args:
        argv: words after `mcjepa`.
        whole: whether it is a command to paste; a mention in prose may lack arguments that are required.

    Raises:
        CommandError: the command line would refuse it.
    """
    words = list(argv)
    while True:
        try:
            arguments = _parse(words)
            break
        except CommandError as error:
            number = WRONG_TYPE.search(str(error))
            if number:  # a placeholder where a number belongs
                words[words.index(number[1])] = "1"
            elif not whole and any(reason in str(error) for reason in MISSING):
                return
            else:
                raise
    _check_keys(arguments, list(argv))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    def refuse(parser: argparse.ArgumentParser, message: str) -> None:
        raise CommandError(f"mcjepa {shlex.join(argv)}: {message}")

    usual = argparse.ArgumentParser.error
    argparse.ArgumentParser.error = refuse  # type: ignore[method-assign, assignment]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            arguments, rest = build_parser().parse_known_args(list(argv))
    except SystemExit:  # --help
        return argparse.Namespace(command=None)
    finally:
        argparse.ArgumentParser.error = usual  # type: ignore[method-assign]
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(overrides) < len(rest) or (rest and not hasattr(arguments, "overrides")):
        raise CommandError(f"mcjepa {shlex.join(argv)}: unrecognized arguments: {rest}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    if arguments.command and not arguments.handler:
        raise CommandError(f"mcjepa {shlex.join(argv)}: not in this release")
    return arguments


def _check_keys(arguments: argparse.Namespace, argv: Sequence[str]) -> None:
    overrides = [word for word in getattr(arguments, "overrides", None) or [] if not PLACEHOLDER.fullmatch(word)]
    name = getattr(arguments, "recipe", None)
    if name is None and arguments.command == "eval":
        overrides = [_key_of_benchmark(arguments.verb, override) for override in overrides]
        overrides += [f"eval.{arguments.verb}.{key}" for key in _places(arguments.verb)] if overrides else []
    if name is None and not overrides:
        return
    if name is not None and not PLACEHOLDER.fullmatch(name) and not name.endswith(".yaml"):
        if name not in shipped_recipes():
            raise CommandError(f"mcjepa {shlex.join(argv)}: no shipped recipe {name!r}")
    else:
        name = STAND_IN
    try:
        _load(name, tuple(overrides))
    except UsageError as error:
        raise CommandError(f"mcjepa {shlex.join(argv)}: {error}") from error


@functools.cache
def _load(name: str, overrides: tuple[str, ...]) -> None:
    load_recipe(name, ["data=/data", "datasets=/datasets", *overrides])


def _key_of_benchmark(kind: str, override: str) -> str:
    key = override.partition("=")[0]
    return f"eval.{override}" if key in ("device", "threads") else f"eval.{kind}.{override}"


def _places(kind: str) -> tuple[str, ...]:
    """The keys that a benchmark's settings must have beside those that the command gives."""
    data_set = "imagefolder" if kind == "classify" else "moving-photos"
    return () if kind == "flow" else (f"set={data_set}", "root=/data")
