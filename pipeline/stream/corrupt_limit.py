"""Names the samples of a run that could not be decoded, and ends it when they are too many."""

from __future__ import annotations

import logging

from mcjepa.data_prep.errors import DataError
from mcjepa.pipeline.stream.batches import StepBatch

log = logging.getLogger(__name__)


class CorruptLimit:
    """The different corrupt samples that a rank has met since it started."""

    def __init__(self, most: int) -> None:
        """Allow `most` of them."""
        self._most = most
        self._met: set[str] = set()

    def count(self, batch: StepBatch) -> None:
        """Count the replaced samples of a step; each is logged when it is met first.

        Raises:
            DataError: there are more than allowed.
        """
        for record in batch.corrupt:
            if record.sample in self._met:
                continue
            self._met.add(record.sample)
            found = f"step {batch.step}: {record.sample} cannot be decoded ({record.reason})"
            count = f"corrupt sample {len(self._met)} of this rank"
            if len(self._met) > self._most:
                raise DataError(
                    f"{found}, {count}; expected at most stream.max_corrupt={self._most}; run `mcjepa prep audit` on "
                    "the dataset and prepare it again, or raise the limit"
                )
            log.warning("%s, %s; %s of its shard takes its place", found, count, record.replaced_by)
