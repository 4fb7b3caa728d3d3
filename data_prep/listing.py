"""Lists the inputs of a dataset's corpora, with their sizes, one at a time."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import replace

from data_prep.config import CorpusConfig, DatasetConfig
from data_prep.corpora import INPUT_READERS
from data_prep.corpora.items import Input
from data_prep.errors import DataError
from data_prep.plan import PlannedInput, corpus_prefix


def list_inputs(config: DatasetConfig) -> Iterator[PlannedInput]:
    """Every input of every corpus, repeated as its corpus says, in a fixed order.

    Raises:
        DataError: an unknown reader, or a corpus that is absent or empty.
    """
    for number, corpus in enumerate(config.corpora):
        for repetition in range(corpus.repeat):
            prefix = corpus_prefix(number, corpus.reader, repetition)
            for item in _read_corpus(corpus):
                here = replace(item, uri=os.path.abspath(item.uri))  # workers may run in another folder
                yield PlannedInput(f"{prefix}/{item.name}", here, _measure(here))


def _read_corpus(corpus: CorpusConfig) -> Iterator[Input]:
    reader = INPUT_READERS.get(corpus.reader)
    if reader is None:
        near = difflib.get_close_matches(corpus.reader, INPUT_READERS, 1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of them"
        known = ", ".join(INPUT_READERS)
        raise DataError(f"no reader is called {corpus.reader!r}; expected one of {known}; {hint}")
    return reader(corpus.path, corpus.split)


def _measure(item: Input) -> int:
    """Bytes of all files of an input; -1 when one cannot be examined: its worker will say why."""
    try:
        return sum(os.stat(path).st_size for path in item.files)
    except OSError:
        return -1
