"""Only S3: its errors in words, without credentials; large objects; certificates; foreign servers' listings."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mcjepa.data_prep.errors import AbsentKey, DataError
from mcjepa.data_prep.storage import Store, open_store, s3_client, s3_upload
from mcjepa.data_prep.storage.s3_list import list_objects
from tests.servers.seaweed import BUCKET, running_seaweed


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "PATIENCE_S", 0.0)
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """What data_prep has logged."""
    with caplog.at_level(logging.DEBUG, logger="mcjepa.data_prep"):
        yield lambda: "".join(
            record.getMessage() for record in caplog.records if record.name.startswith("mcjepa.data_prep")
        )


def test_a_prefix_is_taken_as_it_is_written(s3: str) -> None:
    """Not as a URL, in which `#` and `?` end the path."""
    for number, name in enumerate(("take#1", "what?", "a?b#c/d")):
        open_store(f"{s3}/{name}/").write("k", b"%d" % number)
        assert open_store(f"{s3}/{name}").read("k") == b"%d" % number
    assert sorted(open_store(s3).list("")) == ["a?b#c/d/k", "take#1/k", "what?/k"]


def failures(store: Store) -> Iterator[str]:
    """Messages of every kind of request to a store that cannot be used."""
    requests: list[Callable[[], object]] = [
        lambda: store.read("k"),
        lambda: store.read_range("k", 0, 1),
        lambda: store.write("k", b""),
        lambda: store.write_if_absent("k", b""),
        lambda: store.exists("k"),
        lambda: list(store.files()),
        lambda: store.remove("k"),
    ]
    for request in requests:
        with pytest.raises(DataError) as caught:
            request()
        assert not isinstance(caught.value, AbsentKey)
        yield str(caught.value)


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_explained_and_not_told(s3: str, variable, monkeypatch, logged) -> None:
    monkeypatch.setenv(variable, "wrong-and-secret")
    store = open_store(s3)
    for message in failures(store):
        assert "credentials are wrong" in message and "AWS_PROFILE" in message and s3 in message
        for secret in (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]):
            assert secret not in message + logged() + repr(store) + repr(vars(store))


def test_no_credentials_are_explained(s3: str, monkeypatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "absent"))
    for message in failures(open_store(s3)):
        assert "NoCredentialsError" in message and "standard AWS variables" in message


def test_an_absent_bucket_is_explained(s3: str) -> None:
    for message in failures(open_store("s3://absent-bucket/x")):
        assert "there is no bucket absent-bucket" in message and "create it" in message


def test_an_unreachable_server_is_explained_without_its_password(s3: str, monkeypatch, impatient, logged) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://someone:hidden@127.0.0.1:9")
    for message in failures(open_store(s3)):
        assert "http://127.0.0.1:9 does not answer (EndpointConnectionError)" in message
        assert "AWS_ENDPOINT_URL" in message and "hidden" not in message + logged()


def test_a_server_that_is_away_is_waited_for_and_that_is_logged(s3: str, monkeypatch, logged) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(s3_client, "PATIENCE_S", 2.5)  # a first request takes a second on a busy machine
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    with pytest.raises(DataError, match="does not answer"):
        open_store(s3).exists("k")
    assert "trying again for" in logged()


def test_a_large_file_goes_up_in_parts_and_comes_back_whole(s3: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(s3_upload, "PART_BYTES", 5 << 20)
    content = os.urandom(12 << 20)
    path = tmp_path / "shard.tar"
    path.write_bytes(content)
    store = open_store(s3)
    store.write_file("shard.tar", path)
    assert not path.exists() and store.read("shard.tar") == content
    assert store.read_range("shard.tar", 9 << 20, 1000) == content[9 << 20 :][:1000]


def test_a_file_goes_up_while_it_grows_and_is_seen_when_it_is_finished(s3: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(s3_upload, "PART_BYTES", 5 << 20)
    content, path, store = os.urandom(17 << 20), tmp_path / "shard.tar", open_store(s3)
    with store.growing_file("shard.tar", path) as upload, path.open("wb") as file:
        for start in range(0, len(content), 3 << 20):
            file.write(content[start:][: 3 << 20])
            file.flush()
            upload.settle(min(start + (3 << 20), len(content)))
            assert not store.exists("shard.tar")
        path.read_bytes()
        upload.finish()
    assert store.read("shard.tar") == content and not path.exists()


def test_an_upload_that_is_given_up_leaves_nothing(s3: str, s3_server, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(s3_upload, "PART_BYTES", 5 << 20)
    path, store, client = tmp_path / "shard.tar", open_store(s3), s3_server.client()
    path.write_bytes(bytes(12 << 20))

    def unfinished() -> int:
        return len(client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ()))

    with pytest.raises(KeyboardInterrupt), store.growing_file("shard.tar", path) as upload:
        upload.settle(11 << 20)
        raise KeyboardInterrupt
    assert unfinished() == 0 and not store.exists("shard.tar")
    killed = store.growing_file("shard.tar", path)
    killed.settle(11 << 20)  # type: ignore[attr-defined]
    assert unfinished() == 1
    store.clear_scratch()
    assert unfinished() == 0


@pytest.mark.slow
def test_https_with_a_certificate_of_ones_own(monkeypatch, impatient) -> None:
    with running_seaweed(https=True) as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        store = open_store(f"s3://{BUCKET}/x")
        store.write("k", b"content" * 1000)  # with a checksum trailer, as botocore sends over https only
        assert store.read("k") == b"content" * 1000 and store.read_range("k", 7, 7) == b"content"
        monkeypatch.delenv("AWS_CA_BUNDLE")
        for message in failures(open_store(f"s3://{BUCKET}/x")):
            assert "certificate" in message and "AWS_CA_BUNDLE" in message


class Pages:
    """A server that sends given pages."""

    def __init__(self, server: str, *pages: list[str] | None) -> None:
        self._pages, self._server = list(pages), server

    def call(self, operation: str, key: str = "", **request: Any) -> dict[str, Any]:
        names = self._pages.pop(0)
        answer: dict[str, Any] = {"ResponseMetadata": {"HTTPHeaders": {"server": self._server}}}
        if names is None:
            return answer  # what botocore makes of an answer that was cut before its first byte
        more = {"IsTruncated": bool(self._pages), "NextContinuationToken": "next"}
        return {**answer, **more, "Contents": [{"Key": name, "Size": 1} for name in names]}


def listed(*pages: list[str] | None) -> list[str]:
    return [name for name, _ in list_objects(Pages("AmazonS3", *pages), "")]  # type: ignore[arg-type]


def test_pages_follow_one_another_and_a_lost_one_is_asked_for_again() -> None:
    assert listed(["a", "b"], None, ["c"], []) == ["a", "b", "c"]
    with pytest.raises(DataError, match="empty pages"):
        listed(["a", "b"], *[None] * 9)


def test_a_server_that_sorts_otherwise_is_refused() -> None:
    with pytest.raises(DataError, match=r"lists 'a.txt' after 'a/b'"):
        listed(["a/b", "a.txt"])
