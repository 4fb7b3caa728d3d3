"""`mcjepa export`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mcjepa.data_prep.storage import atomic_write
from mcjepa.pipeline.errors import UsageError

CARD_NAME = "README.md"


def run_export(arguments: argparse.Namespace) -> int:
    """Writes a checkpoint's weights as a folder that needs nothing of the run."""
    from mcjepa.model import pretrained
    from mcjepa.pipeline.export import find_weights, model_card

    out = Path(arguments.out)
    _check_out(out, Path(arguments.checkpoint), {pretrained.WEIGHTS_NAME, pretrained.CONFIG_NAME, CARD_NAME})
    found = find_weights(Path(arguments.checkpoint))
    state = pretrained.encoder_part(found.state) if arguments.only == "encoder" else found.state
    digest = pretrained.save(state, found.config, out, found.lineage)
    if arguments.layout == "hub":
        card = model_card(state, found.config, found.lineage, digest, arguments.license)
        atomic_write(out / CARD_NAME, card.encode())
    if arguments.json:
        record = {"weights": str(out), "sha256": digest, "source": found.source, "from": str(found.place)}
        print(json.dumps({**record, "tensors": len(state), "lineage": dict(found.lineage)}))
    else:
        print(f"exported {len(state)} tensors of {found.place} ({found.source}) to {out}; sha256 {digest}")
    return 0


def _check_out(out: Path, source: Path, own: set[str]) -> None:
    """Refuses a folder that holds anything else, or what is to be exported."""
    if out.resolve() == source.resolve():
        raise UsageError(f"--out is {out}, the exported folder itself; expected another; choose a new one")
    if out.is_dir():
        odd = sorted({path.name for path in out.iterdir()} - own)
        if odd:
            raise UsageError(f"--out {out} holds {odd[0]!r}, expected a new or an exported folder; choose another")
    elif out.exists():
        raise UsageError(f"--out {out} is a file, expected a folder; choose another")
