"""What the parsers of all commands are made of."""

from __future__ import annotations

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where commands are added."""


def command(
    commands: Commands,
    name: str,
    purpose: str,
    example: str,
    handler: str,
) -> argparse.ArgumentParser:
    """A command with one real example in its help; its handler is `MODULE:FUNCTION`."""
    parser = commands.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=handler)
    return parser


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """A recipe and its overrides."""
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of a shipped recipe")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="override of a recipe key, a.b=c")
