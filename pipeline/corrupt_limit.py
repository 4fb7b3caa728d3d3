"""Names the samples of a run that could not be decoded, and ends it when they are too many."""

from __future__ import annotations

import logging

from data_prep.errors import DataError
from pipeline.batches import StepBatch

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
            log.warning(
                "step %d: %s cannot be decoded (%s); %s takes its place; corrupt sample %d of the %d that "
                "stream.max_corrupt allows this rank",
                batch.step, record.sample, record.reason, record.replaced_by, len(self._met), self._most,
            )  # fmt: skip
            if len(self._met) > self._most:
                raise DataError(
                    f"{record.sample} cannot be decoded ({record.reason}), the {len(self._met)}th such sample of this "
                    f"rank; expected at most stream.max_corrupt={self._most}; run `mcjepa prep audit` on the dataset "
                    "and prepare it again, or raise the limit"
                )
