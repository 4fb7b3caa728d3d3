"""Lists the inputs of a dataset's corpora, with their sizes, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mcjepa.data_prep.corpora import INPUT_READERS
from mcjepa.data_prep.corpora.inputs import first_folder
from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.errors import DataError, nearest_name
from mcjepa.data_prep.plan.plan import PlannedInput, corpus_prefix
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from mcjepa.data_prep.storage import absolute_location


def list_inputs(config: DatasetConfig) -> Iterator[PlannedInput]:
    """Every input of every corpus, repeated as its corpus says, in a fixed order.

    Raises:
        DataError: an unknown reader, or a corpus that is absent or empty.
    """
    for number, corpus in enumerate(config.corpora):
        for repetition in range(corpus.repeat):
            prefix = corpus_prefix(number, corpus.reader, repetition)
            for item in read_corpus(corpus):
                yield PlannedInput(f"{prefix}/{item.name}", item, item.bytes)


def list_guarded(config: DatasetConfig) -> Iterator[PlannedInput]:
    """Inputs of the evaluation sets that the leakage filter guards, in order; none when it is off."""
    leakage = config.filters.leakage
    if leakage.mode != "off":
        yield from list_inputs(replace(config, corpora=leakage.sets))


def read_corpus(corpus: CorpusConfig) -> Iterator[Input]:
    """The inputs of one corpus, at locations that hold in any process, labelled if its settings ask for it.

    Raises:
        DataError: an unknown reader, or a corpus that is absent or empty.
    """
    reader = INPUT_READERS.get(corpus.reader)
    if reader is None:
        raise DataError(f"no reader is called {corpus.reader!r}: {nearest_name(corpus.reader, INPUT_READERS)}")
    inputs = reader(absolute_location(corpus.path) if corpus.path else "", corpus.split)
    return map(_with_label, inputs) if corpus.labels else inputs


def _with_label(item: Input) -> Input:
    """The input with its first folder, or its tar, as its class, unless its reader knew the class."""
    return item if item.label else replace(item, label=first_folder(item.name).removesuffix(".tar"))
