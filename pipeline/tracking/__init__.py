"""Where a stage's records go: MLflow at once (`Tracker`), or through a spool that survives it (`run_tracker`)."""

from mcjepa.pipeline.settings.train import TrackingConfig
from mcjepa.pipeline.tracking.lineage import origin_tags, run_label
from mcjepa.pipeline.tracking.mlflow import (
    Tracker,
    attach,
    dataset_tag,
    find_run,
    find_tagged,
    look_up,
    quiet_environment,
    share_view,
)

__all__ = [
    "Tracker",
    "TrackingConfig",
    "attach",
    "dataset_tag",
    "find_run",
    "find_tagged",
    "look_up",
    "origin_tags",
    "quiet_environment",
    "run_label",
    "share_view",
]
