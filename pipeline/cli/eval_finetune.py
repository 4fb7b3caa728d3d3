"""`mcjepa eval finetune`: the whole encoder trained with UperNet on a labelled set."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mcjepa.pipeline.cli.evaluate import evaluate_one
from mcjepa.pipeline.errors import UsageError

if TYPE_CHECKING:
    from mcjepa.evals.finetune.settings import FinetuneConfig

ALIASES = {"voc": "voc2012"}
"""Short names of sets."""


def evaluate_finetune(arguments: argparse.Namespace) -> int:
    """Fine-tunes one set of weights on the set that the command line names, and scores it; one rank or all."""
    from mcjepa.evals.finetune.settings import FinetuneConfig
    from mcjepa.evals.settings import EvalConfig
    from mcjepa.pipeline.recipe.files import apply_overrides, validate
    from mcjepa.pipeline.world import adopt_world, slurm_variables

    content = apply_overrides({}, arguments.overrides)
    content |= {"set": ALIASES.get(arguments.set, arguments.set), "root": arguments.data}
    config = validate(FinetuneConfig, content, "eval finetune")
    if "RANK" not in os.environ and not slurm_variables(os.environ) and arguments.ranks > 1:
        _check_ranks(config, arguments.ranks)
        return _start_ranks(arguments)
    adopt_world(os.environ)
    settings = EvalConfig(finetune=config, seed=arguments.seed)
    ranks = int(os.environ["WORLD_SIZE"])
    if ranks == 1:
        return evaluate_one(arguments, settings)
    _check_ranks(config, ranks)
    with _joined_ranks() as rank:
        if rank == 0:
            return evaluate_one(arguments, settings)
        from mcjepa.evals.run import train_along

        train_along(Path(arguments.weights), settings, Path(arguments.out))
    return 0


def _check_ranks(config: FinetuneConfig, ranks: int) -> None:
    if config.micro_batch % ranks:
        raise UsageError(
            f"{ranks} ranks share micro-batches of {config.micro_batch}, expected a micro_batch that the ranks divide; "
            "change --ranks, batch or micro_batch"
        )


def _start_ranks(arguments: argparse.Namespace) -> int:
    """Runs this very command as several ranks on this machine."""
    from mcjepa.cluster.local import run_ranks

    options = ["-v"] if arguments.verbose else []
    words = [arguments.weights, "--data", arguments.data, "--set", arguments.set, "--out", arguments.out]
    words += ["--tracking", arguments.tracking] if arguments.tracking else []
    words += ["--experiment", arguments.experiment]
    words += ["--seed", str(arguments.seed), *(["--json"] if arguments.json else []), *arguments.overrides]
    command = [sys.executable, "-m", "mcjepa.pipeline.cli", *options, "eval", "finetune", *words]
    return run_ranks(command, arguments.ranks)


@contextmanager
def _joined_ranks() -> Iterator[int]:
    """This process in the group of all ranks, each on its own GPU where there are GPUs; gives its rank."""
    import torch
    import torch.distributed as dist

    from mcjepa.pipeline.world import gpu_index, ranks_here

    gpus, world = torch.cuda.device_count(), int(os.environ["WORLD_SIZE"])
    if gpus:
        torch.cuda.set_device(gpu_index(int(os.environ["LOCAL_RANK"]), ranks_here(world), gpus, os.environ))
    dist.init_process_group("nccl" if gpus else "gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()
