"""Tags that tie an MLflow run to the job that it runs in, out of what the launcher put into the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping

NAMES = {
    "MCJEPA_JOB": "mcjepa.slurm_job",
    "MCJEPA_SITE": "mcjepa.site",
    "MCJEPA_PARENT_RUN": "mlflow.parentRunId",
}


def job_tags(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Tags of the job, none outside of one.

    >>> job_tags({"MCJEPA_JOB": "17", "HOME": "/root"})
    {'mcjepa.slurm_job': '17'}
    """
    found = os.environ if environment is None else environment
    return {tag: found[name] for name, tag in NAMES.items() if found.get(name)}
