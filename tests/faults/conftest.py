"""The S3 server behind a proxy that injects faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.proxy import FaultProxy, running_proxy
from tests.servers.seaweed import SeaweedServer


@pytest.fixture
def proxy(s3_server: SeaweedServer, s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy without random faults that the standard AWS variables lead to; `s3` is a location behind it."""
    with running_proxy(s3_server.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy
