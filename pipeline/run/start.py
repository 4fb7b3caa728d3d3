"""A start of a run on s3: rank 0 goes on with what the prefix has, the other nodes' scratch folders hold nothing older.

s3://B/PREFIX/.start     random name of the start that writes there; also in each of its scratch folders
"""

from __future__ import annotations

import secrets

from mcjepa.data_prep.errors import DataError
from mcjepa.pipeline.run.folder import RunFolder
from mcjepa.pipeline.world import World, broadcast_from_rank0, gather_all


def begin_start(folder: RunFolder, world: World) -> None:
    """Brings the run's small files to rank 0; every rank calls it before anything is read or written in the folder.

    Raises:
        DataError: the store or a scratch folder cannot be used, on whichever rank.
    """
    if not folder.remote:
        return
    before, start, problem = "", secrets.token_hex(8), ""
    if world.rank == 0:
        try:
            before = folder.fetch()
            folder.begin(start)
        except (DataError, OSError) as error:  # told to all: the other ranks are waiting
            problem = str(error)
    before, start, problem = broadcast_from_rank0((before, start, problem), world)
    if not problem and world.rank and world.local_rank == 0:
        try:
            folder.join(before, start, world.rank)
        except (DataError, OSError) as error:
            problem = str(error)
    if problems := [text for text in gather_all(problem, world) if text]:
        raise DataError(problems[0])
