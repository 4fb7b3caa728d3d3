"""Where a stage's records go: MLflow at once (`Tracker`), or through a spool that survives it (`run_tracker`)."""

from mcjepa.pipeline.settings.train import TrackingConfig
from mcjepa.pipeline.tracking.mlflow import (
    Tracker,
    attach,
    dataset_tag,
    find_run,
    find_tagged,
    quiet_environment,
)

__all__ = [
    "Tracker",
    "TrackingConfig",
    "attach",
    "dataset_tag",
    "find_run",
    "find_tagged",
    "quiet_environment",
]
