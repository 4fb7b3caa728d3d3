"""One benchmark without a recipe: weights, or results that are files, to scores, a page and an MLflow run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcjepa.evals.cards import Score, write_scores
from mcjepa.evals.models import load_for_scoring
from mcjepa.evals.progress import OnEvent, silent, torch_threads
from mcjepa.evals.record import publish
from mcjepa.evals.run import finetune_together, run_evaluation
from mcjepa.model.pretrained import shipped_names, weights_folder
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.tracking import TrackingConfig
from mcjepa.pipeline.world import adopt_world

if TYPE_CHECKING:
    from mcjepa.evals.flow.methods import Method
    from mcjepa.evals.settings import EvalConfig


@dataclass(frozen=True)
class Results:
    """Where scores go."""

    out: Path
    tracking: TrackingConfig | None
    """MLflow, where they are to be recorded there too."""

    def __post_init__(self) -> None:
        file = next((place for place in (self.out, *self.out.parents) if place.exists()), self.out)
        if file.exists() and not file.is_dir():
            raise UsageError(f"--out {self.out}: {file} is a file, expected a folder; choose another")


def require_weights(folder: str) -> Path:
    """The weights folder of a path or of a shipped name.

    Raises:
        UsageError: there is no such folder.
    """
    found = weights_folder(folder)
    if not found.is_dir():
        raise UsageError(
            f"no weights folder {folder}, expected one with model.safetensors and config.json, or a name of "
            f"{shipped_names()}; `mcjepa export` makes one"
        )
    return found


def score_weights(kind: str, weights: str, config: EvalConfig, results: Results, on_event: OnEvent) -> list[Score]:
    """Runs the one benchmark of `config` on a weights folder.

    Args:
        kind: its name, for the MLflow run.
        weights: the folder.
        config: settings of the benchmark.
        results: where the scores go.
        on_event: told how far it is.
    """
    scores = run_evaluation(require_weights(weights), config, results.out, on_event)
    publish(scores, results.out, kind, Path(weights).name, results.tracking)
    return scores


def score_masks(estimates: Path, config: EvalConfig, results: Results, on_event: OnEvent) -> list[Score]:
    """Scores a folder of masks."""
    from mcjepa.evals.vos.score import score_estimates

    assert config.vos is not None
    scores = [score_estimates(estimates, config.vos, results.out, on_event)]
    write_scores(scores, results.out)
    publish(scores, results.out, "vos", "files", results.tracking)
    return scores


def check_flow_source(
    weights: str | None, estimates: str | None, baselines: str | None, submission: str | None
) -> None:
    """Refuses a flow benchmark that has nothing to score, or too much.

    Raises:
        UsageError: the words contradict one another.
    """
    if weights and estimates:
        raise UsageError("both WEIGHTS and --estimates are given; expected one of them; leave one out")
    if weights:
        require_weights(weights)
    if baselines and submission:
        raise UsageError(
            "--submission takes the flow of WEIGHTS or --estimates; expected one of them; leave --baselines out"
        )
    if not (weights or estimates or baselines or submission):
        raise UsageError("nothing to score; expected WEIGHTS, --estimates DIR or --baselines; pass one")


def score_flow(
    weights: str | None, estimates: str | None, config: EvalConfig, results: Results, on_event: OnEvent
) -> list[Score]:
    """Scores weights, flow files or, without both, baselines alone on the flow sets of `config`."""
    from mcjepa.evals.flow.score import score_flow_sets

    assert config.flow is not None
    with torch_threads(config.threads):
        method = _flow_method(weights, estimates, config)
        scores = score_flow_sets(method, config.flow, results.out, on_event)
    write_scores(scores, results.out)
    publish(scores, results.out, "flow", Path(weights).name if weights else "files", results.tracking)
    return scores


def submit_flow(
    archive: Path,
    data_set: str,
    root: str,
    weights: str | None,
    estimates: str | None,
    config: EvalConfig,
    on_event: OnEvent,
) -> dict[str, Any]:
    """Writes a test server's archive and checks it, or checks the existing one where nothing is to be written.

    Returns:
        Its name, set, number of files, bytes, and pixels that were cut to KITTI's format, by pair.
    """
    from mcjepa.data_prep.corpora import FLOW_TEST_SETS
    from mcjepa.data_prep.corpora.flow.places import find_set_folder
    from mcjepa.evals.flow.estimates import EstimateFolder
    from mcjepa.evals.flow.methods import flow_methods
    from mcjepa.evals.flow.submission import check_submission, require_whole, write_submission

    assert config.flow is not None
    clamped: dict[str, int] = {}
    folder = find_set_folder(root, data_set)
    pairs = FLOW_TEST_SETS[data_set](folder)
    require_whole(data_set, pairs)
    method = _flow_method(weights, estimates, config)
    with torch_threads(config.threads):
        if method is None:
            check_submission(archive, data_set, pairs, on_event)
        else:
            given = method.estimates
            files = EstimateFolder(given, data_set, folder, pairs, alone=True) if given else None
            methods = flow_methods(method, (), config.flow.resize, files)
            clamped = write_submission(archive, data_set, pairs, methods, config.flow.workers, on_event)
    size = archive.stat().st_size
    return {"submission": str(archive), "set": data_set, "files": len(pairs), "bytes": size, "clamped_pixels": clamped}


def _flow_method(weights: str | None, estimates: str | None, config: EvalConfig) -> Method | None:
    from mcjepa.evals.flow.methods import Method

    if estimates:
        folder = Path(estimates)
        return Method(name=f"estimates in {folder.name}", estimates=folder)
    return Method.of(load_for_scoring(weights, config.device, config.seed)) if weights else None


def check_finetune_ranks(config: EvalConfig, ranks: int) -> None:
    """Refuses ranks that do not divide a micro-batch.

    Raises:
        UsageError: they do not.
    """
    assert config.finetune is not None
    micro_batch = config.finetune.micro_batch
    if micro_batch % ranks:
        raise UsageError(
            f"{ranks} ranks share micro-batches of {micro_batch}, expected a micro_batch that the ranks divide; "
            "change --ranks, batch or micro_batch"
        )


def finetune_weights(weights: str, config: EvalConfig, results: Results, on_event: OnEvent) -> list[Score] | None:
    """Fine-tunes and scores weights as one rank of the world that a launcher started, or alone.

    Returns:
        The scores; None on ranks other than the first.
    """
    adopt_world(os.environ)
    ranks = int(os.environ["WORLD_SIZE"])
    if ranks == 1:
        return score_weights("finetune", weights, config, results, on_event)
    check_finetune_ranks(config, ranks)
    with _joined_ranks() as rank:
        finetune_together(weights_folder(weights), config, results.out, on_event if rank == 0 else silent)
    return score_weights("finetune", weights, config, results, on_event) if rank == 0 else None


@contextmanager
def _joined_ranks() -> Iterator[int]:
    """This process in the group of all ranks, each on its own GPU where there are GPUs; gives its rank.

    They leave it together: a rank that goes while another is in the group can take that one with it (gloo aborts).
    """
    import torch
    import torch.distributed as dist

    from mcjepa.pipeline.world import gpu_index, ranks_here, rest_at_exit

    gpus, world = torch.cuda.device_count(), int(os.environ["WORLD_SIZE"])
    if gpus:
        torch.cuda.set_device(gpu_index(int(os.environ["LOCAL_RANK"]), ranks_here(world), gpus, os.environ))
    dist.init_process_group("nccl" if gpus else "gloo")
    rest_at_exit()
    try:
        yield dist.get_rank()
        dist.barrier()
    finally:
        dist.destroy_process_group()


def output_folders(out: Path, data_set: str) -> dict[str, Path]:
    """Folders of masks and overlays that `eval vos` has written."""
    folders = {kind: out / "vos" / data_set / kind for kind in ("masks", "overlays")}
    return {kind: folder for kind, folder in folders.items() if folder.is_dir()}
