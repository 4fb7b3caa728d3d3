"""Lists the objects of an S3 bucket in the byte order of their names, a page (or a folder) in memory at a time.

S3 promises that order, and most servers keep it. SeaweedFS sorts by folders (`a/b` before `a.txt`, though '.' comes
before '/'): there every folder is listed by itself and sorted here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage.keys import EVERYTHING, KeySpan
from mcjepa.data_prep.storage.s3_client import S3Client

SORTED_BY_FOLDERS = "SeaweedFS"
PAGE_ATTEMPTS = 5
FOLDER = -1
LEVEL_PAGES = 100


def list_objects(client: S3Client, prefix: str, span: KeySpan = EVERYTHING) -> Iterator[tuple[str, int]]:
    """Names that begin with `prefix` and lie in `span`, and lengths, sorted; what lies before it is not listed.

    Raises:
        DataError: the server lists in another order.
    """
    last = ""
    # StartAfter leaves out the name itself, so it is cut by a character; what comes too early is passed over below.
    after = {"StartAfter": span.first[:-1]} if len(span.first) > 1 else {}
    for page in _pages(client, Prefix=prefix, **after):
        if page["ResponseMetadata"]["HTTPHeaders"].get("server", "").startswith(SORTED_BY_FOLDERS):
            yield from _by_folder(client, prefix, span)
            return
        for entry in page.get("Contents", ()):
            name = entry["Key"]
            if name < last:
                raise DataError(
                    f"the server lists {name!r} after {last!r}; expected names sorted by their bytes, as S3 promises; "
                    "use a general-purpose bucket"
                )
            last = name
            if span.holds(name):
                yield name, int(entry["Size"])
            elif span.end and name >= span.end:
                return


def list_level(client: S3Client, prefix: str) -> list[str]:
    """Names directly at `prefix`, and those of folders with their slash, of the first `LEVEL_PAGES` pages; sorted."""
    names: list[str] = []
    for page in islice(_pages(client, Prefix=prefix, Delimiter="/"), LEVEL_PAGES):
        names += [entry["Key"] for entry in page.get("Contents", ())]
        names += [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]
    return sorted(names)


def _by_folder(client: S3Client, prefix: str, span: KeySpan) -> Iterator[tuple[str, int]]:
    waiting = [(prefix, FOLDER)]
    while waiting:
        name, size = waiting.pop()
        if size != FOLDER:
            yield name, size
            continue
        found: list[tuple[str, int]] = []
        for page in _pages(client, Prefix=name, Delimiter="/"):
            found += [(entry["Key"], int(entry["Size"])) for entry in page.get("Contents", ())]
            found += [(entry["Prefix"], FOLDER) for entry in page.get("CommonPrefixes", ())]
        waiting += sorted((entry for entry in found if span.meets(os.fsencode(entry[0]))), reverse=True)


def _pages(client: S3Client, **request: Any) -> Iterator[dict[str, Any]]:
    token: dict[str, str] = {}
    while True:
        page = _whole_page(client, {**request, **token})
        yield page
        if not page["IsTruncated"]:
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def _whole_page(client: S3Client, request: dict[str, Any]) -> dict[str, Any]:
    """A page; one that was cut off before its first byte reads as empty to botocore, and is asked for again."""
    for _ in range(PAGE_ATTEMPTS):
        page = client.call("list_objects_v2", **request)
        if "IsTruncated" in page:
            return page
    raise DataError(
        f"the server sent {PAGE_ATTEMPTS} empty pages for {request['Prefix']}; expected a listing; check the server"
    )
