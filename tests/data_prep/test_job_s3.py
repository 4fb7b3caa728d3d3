"""The whole job with its datasets in S3: workers reach the bucket by the standard AWS variables."""

from __future__ import annotations

import pytest

from mcjepa.data_prep.dataset.audit import audit_dataset
from mcjepa.data_prep.job import run_prep
from mcjepa.data_prep.plan.forecast import plan_prep
from mcjepa.data_prep.settings import PrepConfig


@pytest.mark.slow
def test_a_dataset_is_published_in_a_bucket_and_found_there(videos, clips_of, s3: str, tmp_path) -> None:
    local = run_prep(PrepConfig(root=str(tmp_path / "d"), datasets={"clips": clips_of(videos)}, workers=1))
    config = PrepConfig(root=s3, datasets={"clips": clips_of(videos)}, workers=1)
    report = run_prep(config)
    assert report.datasets[0].dataset_id == local.datasets[0].dataset_id
    assert report.datasets[0].location == f"{s3}/clips" and audit_dataset(f"{s3}/clips").ok
    assert plan_prep(config)[0].state == "published"
    assert run_prep(config).datasets[0].reused_shards == 2
