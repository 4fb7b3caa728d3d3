"""`mcjepa explain` and `mcjepa diff`."""

from __future__ import annotations

import argparse
import json
import os

from mcjepa.pipeline.exits import OK, PARTIAL
from mcjepa.pipeline.recipe.recipe import without_credentials


def explain(arguments: argparse.Namespace) -> int:
    """`mcjepa explain`: 4 where something is no longer what it was."""
    from mcjepa.pipeline.lineage.chain import explain as chain_of

    chain = chain_of(arguments.artifact, arguments.beside, _tracking(arguments))
    changed = [f"{link.kind} {link.name}: {text}" for link in chain for text in link.changed]
    if arguments.json:
        missing = [f"{link.kind} {link.name}: {text}" for link in chain for text in link.missing]
        print(json.dumps({"chain": [link.to_dict() for link in chain], "missing": missing, "changed": changed}))
        return PARTIAL if changed else OK
    for place, link in enumerate(chain):
        print(f"{'' if place == 0 else '-> '}{link.kind} {link.name}  {link.identity or 'no id'}")
        facts = {"in": link.location, **link.facts}
        print("\n".join(f"     {name:<16} {value}" for name, value in facts.items()))
        for label, texts in (("MISSING", link.missing), ("CHANGED", link.changed)):
            print("".join(f"     {label:<16} {text}\n" for text in texts), end="")
    return PARTIAL if changed else OK


def diff(arguments: argparse.Namespace) -> int:
    """`mcjepa diff`."""
    from mcjepa.pipeline.lineage.difference import CATEGORIES, compare

    found = compare(arguments.first, arguments.second, arguments.beside, _tracking(arguments))
    if arguments.json:
        results = [{"metric": name, "first": one, "second": other} for name, one, other in found.results]
        differences = [difference.to_dict() for difference in found.differences]
        print(json.dumps({"differences": differences, "results": results}))
        return OK
    for category, meaning in CATEGORIES.items():
        lines = [str(difference) for difference in found.differences if difference.category == category]
        if lines:
            print("\n".join([f"{category} ({meaning}):", *(f"  {line}" for line in lines)]))
    if not found.differences:
        print("nothing differs that is written down")
    if found.results:
        print("\n".join(["results:", *(f"  {name}: {one} | {other}" for name, one, other in found.results)]))
    return OK


def _tracking(arguments: argparse.Namespace) -> str:
    return without_credentials(arguments.tracking or os.environ.get("MLFLOW_TRACKING_URI", ""))
