"""`mcjepa study run|table`: the arms of a study, trained, evaluated and compared."""

from __future__ import annotations

import argparse
import json

from mcjepa.pipeline.exits import OK
from mcjepa.pipeline.recipe.recipe import load_recipe


def run(arguments: argparse.Namespace) -> int:
    """`mcjepa study run`: trains and evaluates what is not finished, then prints the tables."""
    from mcjepa.pipeline.cli.output import StageProgress
    from mcjepa.pipeline.launch.study import run_study

    recipe, plain = load_recipe(arguments.recipe, arguments.overrides)
    with StageProgress("study") as progress:
        run_study(recipe, plain, progress.note)
    return table(arguments)


def table(arguments: argparse.Namespace) -> int:
    """`mcjepa study table`: what is scored so far."""
    from mcjepa.pipeline.stages.study import study_table

    found, text = study_table(*load_recipe(arguments.recipe, arguments.overrides))
    print(json.dumps(found.to_dict()) if arguments.json else text, end="\n" if arguments.json else "")
    return OK
