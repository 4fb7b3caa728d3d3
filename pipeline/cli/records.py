"""`mcjepa init`, `mcjepa recipe`, `mcjepa ui` and `mcjepa tracking sync`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mcjepa.pipeline.exits import OK, PARTIAL
from mcjepa.pipeline.recipe.recipe import Recipe, describe_keys, load_recipe, required


def init(arguments: argparse.Namespace) -> int:
    """`mcjepa init`: writes a recipe and says what comes next."""
    import dataclasses

    from mcjepa.pipeline.stages.starter import write_starter

    made = write_starter(arguments.videos, arguments.images, arguments.site, arguments.minutes, Path(arguments.out))
    if arguments.json:
        print(json.dumps({**dataclasses.asdict(made), "file": str(made.file)}))
        return OK
    for warning in made.warnings:
        print(f"mcjepa: {warning}", file=sys.stderr)
    print(f"wrote {made.file} for {made.material}: {made.steps} steps of {made.step_s:.2g} s, {made.minutes:g} min")
    print("next:", *made.commands, sep="\n  ")
    return OK


def recipe(arguments: argparse.Namespace) -> int:
    """`mcjepa recipe`."""
    import yaml

    from mcjepa.pipeline.recipe.validation import json_schema

    _, plain = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.keys:
        print("\n".join(describe_keys(json_schema(Recipe))))
    else:
        print(yaml.safe_dump(plain, sort_keys=False), end="")
    return OK


def ui(arguments: argparse.Namespace) -> int:
    """`mcjepa ui`: prints the link, and serves it until it is interrupted."""
    from mcjepa.pipeline.stages.interface import find_interface, serve

    found = find_interface(arguments.target, arguments.overrides)
    if found.is_server:
        print(found.link())
        return OK

    def tell(link: str) -> None:
        print(link, flush=True)
        print("Ctrl-C ends the server", file=sys.stderr, flush=True)

    return serve(found, arguments.port, tell)


def sync(arguments: argparse.Namespace) -> int:
    """`mcjepa tracking sync`: 4 where records are left."""
    from mcjepa.pipeline.tracking.delivery import deliver_spool

    run = Path(arguments.run)
    if not run.is_dir():
        named, _ = load_recipe(arguments.run, arguments.overrides)
        run = Path(required(named.train, "train", named).run)
    found = deliver_spool(run)
    if arguments.json:
        counts = {"delivered": found.delivered, "left": found.left}
        print(json.dumps({"run": str(run), "run_id": found.run_id, **counts}))
    else:
        print(f"{found.delivered} records delivered, {found.left} left in {found.folder}")
    if found.left:
        print(f"mcjepa: MLflow at {found.uri} does not take them: {found.reason}", file=sys.stderr)
    return PARTIAL if found.left else OK
