"""The plan of a dataset: which inputs it has, with what parameters, and which of them make which shard.

Pure functions over a stream of inputs; no step holds all of them. The plan's digest covers the inputs'
names and sizes, in order, and everything that decides the bytes of the shards. It does not cover the place
of the corpora, nor the decoder's time and memory limits. Content digests come later, from the workers
that read the files: they are in inputs.jsonl.gz and in the manifest's `inputs_digest`.

    ROOT/plan.json       version, digest, kind, parameters, decoder, encoder, libraries, inputs, bytes, shards
    ROOT/plan.jsonl.gz   one line an input, in order: bytes, kind, members, name, uri
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from typing import Any

from mcjepa.data_prep.corpora.census import Census
from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.layout import shard_name
from mcjepa.data_prep.settings import DatasetConfig

PLAN_VERSION = 2
LAYOUT_VERSION = 2
"""Raised when the bytes of shards change for the same inputs and parameters."""
NOT_IN_DIGEST = ("timeout_s", "memory_cap_mib")
KEY_DIGITS = 16


@dataclass(frozen=True)
class PlannedInput:
    """One input of a dataset."""

    name: str
    """Unique in the dataset: number and reader of the corpus, then the input's own name."""
    item: Input
    bytes: int
    """Size of all its files; -1 when they cannot be examined."""


@dataclass(frozen=True)
class ShardPlan:
    """The inputs of one shard."""

    name: str
    inputs: tuple[PlannedInput, ...]


@dataclass(frozen=True)
class PlanSummary:
    """The content of plan.json."""

    plan_digest: str
    kind: str
    parameters: dict[str, Any]
    decoder: str
    encoder: str
    inputs: int
    bytes: int
    shards: int
    files: int = 0
    """Files and tar members that the inputs hold, each input at least one."""
    census: dict[str, Any] = field(default_factory=dict)
    """What lies in the corpora: entries, others by the end of their names, unlabelled. Not part of the digest."""
    libraries: dict[str, str] = field(default_factory=dict)
    """The other libraries that decide the shards' bytes, with their versions. Not part of the digest."""
    version: int = PLAN_VERSION

    @property
    def shard_names(self) -> Sequence[str]:
        """Names of its shards, in order."""
        return [shard_name(self.kind, number) for number in range(self.shards)]


def corpus_prefix(number: int, reader: str, repetition: int) -> str:
    """First part of the names of a corpus's inputs.

    >>> corpus_prefix(0, "videos", 0), corpus_prefix(1, "davis", 2)
    ('0-videos', '1-davis@2')
    """
    return f"{number}-{reader}" + (f"@{repetition}" if repetition else "")


def sample_key(input_name: str, number: int) -> str:
    """Key of sample `number` of an input: digest-based, without dots, sorted by number.

    >>> sample_key("0-videos/bikes.mp4", 7)
    '2d133d361f8f5104-000007'
    """
    digest = hashlib.sha256(input_name.encode(errors="surrogateescape")).hexdigest()
    return f"{digest[:KEY_DIGITS]}-{number:06d}"


def split_into_shards(inputs: Iterable[PlannedInput], config: DatasetConfig, first: int = 0) -> Iterator[ShardPlan]:
    """Consecutive inputs, `inputs_per_shard` at a time, in order; the shards are numbered from `first`."""
    stream = iter(inputs)
    number = first
    while group := tuple(islice(stream, config.inputs_per_shard)):
        yield ShardPlan(shard_name(config.kind, number), group)
        number += 1


def describe_parameters(config: DatasetConfig) -> dict[str, Any]:
    """What of the settings decides the bytes of the shards, as plain JSON values."""
    parameters = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_IN_DIGEST}
    parameters["corpora"] = _without_paths(parameters["corpora"])
    leakage = parameters["filters"]["leakage"]
    leakage["sets"] = _without_paths(leakage["sets"])
    if config.kind == "image":
        del parameters["frames"], parameters["frame_step"]
    plain: dict[str, Any] = json.loads(json.dumps({**parameters, "layout_version": LAYOUT_VERSION}))
    return plain


def _without_paths(corpora: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in corpus.items() if k != "path"} for corpus in corpora]


def digest_line(planned: PlannedInput) -> bytes:
    """What the plan's digest takes of an input."""
    item = planned.item
    line = [planned.name, item.kind, planned.bytes, item.members]
    if item.span or item.roles or item.label or item.refusal:
        line += [item.roles, item.span, item.label, item.refusal]
    return json.dumps(line).encode()


class PlanDigest:
    """Takes in the inputs one by one and gives the plan's summary."""

    def __init__(
        self,
        config: DatasetConfig,
        decoder: str,
        encoder: str,
        guarded: str = "",
        libraries: dict[str, str] | None = None,
    ) -> None:
        """Start from the parameters and the versions of decoder and encoder.

        Args:
            config: The dataset's settings.
            decoder: Name and version.
            encoder: Name and version.
            guarded: Digest of the list of evaluation inputs that the leakage filter guards; empty without it.
            libraries: Other libraries, which the summary names.
        """
        self._config = config
        self._libraries = libraries or {}
        self._parameters = describe_parameters(config) | ({"guarded_inputs": guarded} if guarded else {})
        self._codecs = (decoder, encoder)
        self._inputs = self._bytes = self._files = 0
        start = [PLAN_VERSION, self._parameters, decoder, encoder]
        self._digest = hashlib.sha256(json.dumps(start, sort_keys=True).encode())

    def add(self, planned: PlannedInput) -> None:
        """Take in the next input."""
        self.count(1, max(0, planned.bytes), len(planned.item.files))
        self.take(digest_line(planned))

    def count(self, inputs: int, size: int, files: int) -> None:
        """Add to the numbers of inputs, their bytes and their files."""
        self._inputs += inputs
        self._bytes += size
        self._files += files

    def take(self, lines: bytes) -> None:
        """Take in the next bytes of the inputs' digest lines."""
        self._digest.update(lines)

    def summary(self, census: Census | None = None) -> PlanSummary:
        """The plan of the inputs so far, with the counts of what lies in their corpora."""
        return PlanSummary(
            plan_digest=self._digest.hexdigest(),
            kind=self._config.kind,
            parameters=self._parameters,
            decoder=self._codecs[0],
            encoder=self._codecs[1],
            inputs=self._inputs,
            bytes=self._bytes,
            shards=-(-self._inputs // self._config.inputs_per_shard),
            files=self._files,
            census={} if census is None else census.record(),
            libraries=self._libraries,
        )


def input_to_line(planned: PlannedInput) -> dict[str, Any]:
    """A planned input as one JSON object of plan.jsonl.gz; what is empty is left out."""
    item = planned.item
    line = {"name": planned.name, "bytes": planned.bytes, "uri": item.uri, "kind": item.kind}
    if item.name != planned.name.partition("/")[2]:
        line["item"] = item.name
    rest = {name: getattr(item, name) for name in ("members", "roles", "span", "label", "refusal")}
    return line | {name: value for name, value in rest.items() if value}


def input_from_line(line: dict[str, Any]) -> PlannedInput:
    """The planned input of a line of plan.jsonl.gz."""
    span = line.get("span")
    item = Input(
        name=line.get("item", line["name"].partition("/")[2]),
        uri=line["uri"],
        kind=line["kind"],
        members=tuple(line.get("members", ())),
        roles=tuple(line.get("roles", ())),
        span=(span[0], span[1]) if span else None,
        bytes=line["bytes"],
        label=line.get("label", ""),
        refusal=line.get("refusal", ""),
    )
    return PlannedInput(line["name"], item, line["bytes"])


def differing_parameters(old: PlanSummary, new: PlanSummary) -> list[str]:
    """What differs between two plans' parameters, as `name: old -> new`."""
    before = {**_flat(old.parameters), "decoder version": old.decoder, "encoder version": old.encoder}
    after = {**_flat(new.parameters), "decoder version": new.decoder, "encoder version": new.encoder}
    names = sorted(before.keys() | after.keys())
    return [f"{n}: {before.get(n)} -> {after.get(n)}" for n in names if before.get(n) != after.get(n)]


def _flat(parameters: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in parameters.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def differing_inputs(old: Iterable[PlannedInput], new: Iterable[PlannedInput]) -> str:
    """The first input at which two lists part, in words; empty when they are alike."""
    for number, (before, after) in enumerate(zip_longest(old, new), 1):
        if after is None and before is not None:
            return f"input {number} was {before.name}, now the list ends there"
        if before is None and after is not None:
            return f"the list ended before input {number}, now there is {after.name}"
        if before is None or after is None:
            break
        if before.name != after.name:
            return f"input {number} was {before.name}, now is {after.name}"
        if (before.bytes, before.item.members) != (after.bytes, after.item.members):
            return f"{before.name} had {before.bytes} bytes, now has {after.bytes}"
    return ""
