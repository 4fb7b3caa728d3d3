"""Lists the inputs of a dataset's corpora, with their sizes, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mcjepa.data_prep.corpora import FREE_READERS, INPUT_READERS
from mcjepa.data_prep.corpora.census import Census, Reading
from mcjepa.data_prep.corpora.inputs import first_folder
from mcjepa.data_prep.corpora.items import Input
from mcjepa.data_prep.errors import DataError, nearest_name
from mcjepa.data_prep.plan.plan import PlannedInput, corpus_prefix
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from mcjepa.data_prep.storage import EVERYTHING, KeySpan, absolute_location


def list_inputs(config: DatasetConfig, census: Census | None = None) -> Iterator[PlannedInput]:
    """Every input of every corpus, repeated as its corpus says, in a fixed order.

    Args:
        config: The dataset's settings.
        census: Counts what lies in the corpora (once for each repetition) while the inputs are listed.

    Raises:
        DataError: an unknown reader, or a corpus that is absent or empty.
    """
    for number, corpus in enumerate(config.corpora):
        for repetition in range(corpus.repeat):
            prefix = corpus_prefix(number, corpus.reader, repetition)
            for item in read_corpus(corpus, census):
                yield PlannedInput(f"{prefix}/{item.name}", item, item.bytes)


def list_guarded(config: DatasetConfig) -> Iterator[PlannedInput]:
    """Inputs of the evaluation sets that the leakage filter guards, in order; none when it is off."""
    leakage = config.filters.leakage
    if leakage.mode != "off":
        yield from list_inputs(replace(config, corpora=leakage.sets))


def read_corpus(corpus: CorpusConfig, census: Census | None = None, span: KeySpan = EVERYTHING) -> Iterator[Input]:
    """The inputs of one corpus, or of a stretch of its listing, at locations that hold in any process.

    They are labelled if the corpus's settings ask for it.

    Raises:
        DataError: an unknown reader, or a corpus that is absent or empty.
    """
    reader = INPUT_READERS.get(corpus.reader)
    if reader is None:
        raise DataError(f"no reader is called {corpus.reader!r}: {nearest_name(corpus.reader, INPUT_READERS)}")
    location = absolute_location(corpus.path) if corpus.path else ""
    reading = Reading(corpus.members, Census() if census is None else census, span)
    if corpus.reader in FREE_READERS:
        inputs = FREE_READERS[corpus.reader](location, corpus.split, reading)
    elif corpus.members:
        readers = ", ".join(FREE_READERS)
        raise DataError(f"reader {corpus.reader} with `members`; expected them with one of {readers}; leave them out")
    else:
        inputs = _counted(reader(location, corpus.split), reading.census)
    return _labelled(inputs, corpus.reader, reading.census) if corpus.labels else inputs


def _counted(inputs: Iterator[Input], census: Census) -> Iterator[Input]:
    """The inputs of a data set, whose layout names its files: only those are met."""
    for item in inputs:
        census.entries += len(item.files)
        yield item


def _labelled(inputs: Iterator[Input], reader: str, census: Census) -> Iterator[Input]:
    """The inputs with their classes: as the reader knows them, else their first folder; of `tars` the tar's own name.

    A WebDataset sample without a label has none: its tar is no class.
    """
    for item in inputs:
        if reader == "tars":
            label = item.uri.rpartition("/")[2]
            label = label[: -len(".tar")] if label.lower().endswith(".tar") else label
        else:
            label = item.label or ("" if reader == "webdataset" else first_folder(item.name))
        census.unlabelled += not label
        yield replace(item, label=label)
