"""Requests to one S3 bucket, repeated while the server is away and explained when given up.

botocore repeats a request that meets an error, a throttle or a lost connection within about a second. Around it a call
here is repeated until `PATIENCE_S` have passed, which covers a server that restarts, and answers that break off within
their XML, which botocore does not repeat.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import threading
import time
from typing import Any

from mcjepa.data_prep.storage.s3_errors import (
    NOT_FOUND,
    ObjectPlace,
    client_errors,
    explain,
    may_pass,
    silence,
    status_of,
)

LOG = logging.getLogger(__name__)

ATTEMPTS = 6
"""botocore's own, one after the other with growing pauses."""
PATIENCE_S = 45.0
LONGEST_PAUSE_S = 3.0
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
CONNECTIONS = 32
"""Kept open: more than the threads that share a store, with those of an upload in parts."""


class S3Client:
    """A boto3 client of one bucket, made at first use in each process; may be shared between threads."""

    def __init__(self, location: str, bucket: str) -> None:
        """Remember where to go; nothing is contacted yet."""
        self._location, self._bucket = location, bucket
        self._lock = threading.Lock()
        self._made: Any = None
        self._process = 0
        self._bucket_seen = False

    def call(self, operation: str, key: str = "", **request: Any) -> dict[str, Any]:
        """The answer to one request, as boto3's client method `operation` gives it.

        It is sent again while it fails for a reason that may pass.

        Args:
            operation: For example `get_object`.
            key: The full name of the object, for `Key` and for messages.
            request: Further parameters.

        Raises:
            AbsentKey: there is no such object.
            ConditionFailed: another object is there (`IfNoneMatch`), or another version (`IfMatch`).
            EmptySpan: the range begins behind the end.
            UploadLost: the server does not know the upload in parts.
            DataError: refused, or given up after PATIENCE_S.
        """
        if key:
            request["Key"] = key
        give_up = time.monotonic() + PATIENCE_S
        for attempt in itertools.count():
            try:
                answer: dict[str, Any] = getattr(self._client(), operation)(Bucket=self._bucket, **request)
                self._bucket_seen = True
                return answer
            except client_errors() as error:
                place = self._place(key)
                left = give_up - time.monotonic()
                if not may_pass(error) or left <= 0:
                    has_bucket = self._has_bucket(error)
                    raise explain(error, place, repeated=attempt > 0, has_bucket=has_bucket) from error
                LOG.warning("%s; trying again for %.0f s", silence(error, place), left)
                time.sleep(min(LONGEST_PAUSE_S, 0.2 * 2**attempt, left) * random.uniform(0.5, 1))
        raise AssertionError("unreachable")

    def copy(self, key: str, target: str) -> None:
        """Copy an object within the bucket; errors as of `call`."""
        self.call("copy", target, CopySource={"Bucket": self._bucket, "Key": key})

    def _client(self) -> Any:
        """The client of this process: connections must not be shared with a forked child."""
        with self._lock:
            if self._made is None or self._process != os.getpid():
                self._made, self._process = _make_client(), os.getpid()
            return self._made

    def _place(self, key: str) -> ObjectPlace:
        endpoint = self._made.meta.endpoint_url if self._made else os.environ.get("AWS_ENDPOINT_URL", "")
        return ObjectPlace(self._location, self._bucket, endpoint, key)

    def _has_bucket(self, error: Exception) -> bool:
        """The 404 that answers a HEAD does not say whether the object or the bucket is absent: ask once."""
        from botocore.exceptions import BotoCoreError, ClientError

        if isinstance(error, ClientError) and status_of(error) == NOT_FOUND and not self._bucket_seen:
            try:
                self._client().head_bucket(Bucket=self._bucket)
            except (BotoCoreError, ClientError) as answer:  # 403 for example: not allowed to ask
                if isinstance(answer, ClientError) and status_of(answer) == NOT_FOUND:
                    return False
            self._bucket_seen = True
        return True


def _make_client() -> Any:
    import boto3
    from botocore.config import Config

    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    config = Config(
        retries={"mode": "adaptive", "total_max_attempts": ATTEMPTS},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=CONNECTIONS,
        tcp_keepalive=True,
    )
    return boto3.session.Session().client("s3", config=config)
