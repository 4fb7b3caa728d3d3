"""A store keeps its promises while the server fails: errors, answers and requests cut off, a crash and a restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import Store, open_store, s3_client, s3_upload
from tests.faults.proxy import FAULT_KINDS, Fault, FaultProxy
from tests.servers.seaweed import SeaweedServer

CONTENT = bytes(range(251)) * 4000


@pytest.fixture
def store(s3: str, proxy: FaultProxy) -> Store:
    """A store with one object, behind the proxy."""
    store = open_store(s3)
    store.write("k", CONTENT)
    return store


@pytest.mark.parametrize("fault", FAULT_KINDS)
def test_every_request_outlives_two_faults(store: Store, proxy: FaultProxy, fault: Fault, tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write_file() -> None:
        path.write_bytes(CONTENT)
        store.write_file("file", path)

    requests: list[tuple[Callable[[], object], object]] = [
        (lambda: store.read("k"), CONTENT),
        (lambda: store.read_range("k", 1000, 5000), CONTENT[1000:6000]),
        (lambda: store.download("k", path), None),
        (lambda: store.size("k"), len(CONTENT)),
        (lambda: store.exists("absent"), False),
        (lambda: list(store.files()), [("k", len(CONTENT))]),
        (lambda: store.write("w", CONTENT), None),
        (lambda: store.write_if_absent("c", CONTENT), True),
        (lambda: store.write_if_absent("c", b"other"), False),
        (write_file, None),
        (lambda: store.remove("w"), None),
    ]
    for request, expected in requests:
        proxy.queue.extend([fault, fault])
        assert request() == expected
        proxy.queue.clear()  # a cut refusal is a refusal: the second fault is not met
    assert proxy.counts[fault] >= 2 * len(requests) - 1
    for key in ("c", "file"):
        assert store.read(key) == CONTENT


def test_a_parted_upload_whose_last_answer_is_lost_is_done_again(store, proxy, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(s3_upload, "PART_BYTES", 5 << 20)
    (tmp_path / "file").write_bytes(bytes(11 << 20))
    lost: list[Fault] = [*([""] * 4), "cut response"]  # begin, three parts, complete
    proxy.queue.extend(lost)
    store.write_file("file", tmp_path / "file")
    assert not proxy.queue and store.size("file") == 11 << 20


def test_a_cut_body_is_taken_up_where_it_ended(store: Store, proxy: FaultProxy) -> None:
    before = proxy.counts["requests"]
    proxy.queue.extend(["cut response"] * 3)
    with store.open("k") as file:
        assert file.read() == CONTENT
    assert proxy.counts["requests"] - before == 4
    assert proxy.sent_bytes == len(CONTENT)


def test_an_object_replaced_while_it_is_read_is_noticed(store: Store, proxy: FaultProxy) -> None:
    proxy.queue.append("cut response")
    with store.open("k") as file:
        file.read(10)
        store.write("k", CONTENT[::-1])
        with pytest.raises(DataError, match="expected it unchanged"):
            file.read()


@pytest.mark.parametrize("faults", [["corrupt"], ["cut response", "corrupt"]], ids=["whole", "resumed"])
def test_a_changed_byte_is_noticed(store: Store, proxy: FaultProxy, faults: list[Fault]) -> None:
    proxy.queue.extend(faults)
    with pytest.raises(DataError, match="does not have the checksum"):
        store.read("k")
    assert store.read("k") == CONTENT


def test_a_lost_answer_of_a_conditional_put_does_not_hide_another_writer(store: Store, proxy: FaultProxy) -> None:
    proxy.queue.append("error before")
    assert store.write_if_absent("m", b"ours")
    proxy.queue.append("error after")
    assert not store.write_if_absent("m", b"theirs")
    assert not store.write_if_absent("m", b"ours")  # sent once: it was there before
    assert store.read("m") == b"ours"


def test_a_server_that_only_fails_is_given_up_with_its_code(store: Store, proxy: FaultProxy, monkeypatch) -> None:
    monkeypatch.setattr(s3_client, "PATIENCE_S", 0.5)
    proxy.queue.extend(["error before"] * 200)
    with pytest.raises(DataError, match=r"answers (InternalError|ServiceUnavailable), .*check it and AWS_ENDPOINT_URL"):
        store.write("k", b"")


@pytest.mark.slow
def test_nothing_that_was_acknowledged_is_lost_when_the_server_is_killed(s3: str, s3_server: SeaweedServer) -> None:
    store, acknowledged, end = open_store(s3), set[str](), threading.Event()
    failed: list[BaseException] = []

    def put(thread: int) -> None:
        number = 0
        while not end.is_set():
            key = f"{thread}/{number:05d}"
            try:
                store.write(key, key.encode() * 500)
            except BaseException as error:
                failed.append(error)
                return
            acknowledged.add(key)
            number += 1

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    s3_server.kill()
    s3_server.start()
    time.sleep(1)
    end.set()
    for thread in threads:
        thread.join()
    assert failed == [] and len(acknowledged) > 100
    assert set(store.list("")) == acknowledged
    assert all(store.read(key) == key.encode() * 500 for key in acknowledged)
