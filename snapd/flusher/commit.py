"""`commit_in_room`: a snapshot, also on a disk that has no room for its manifest."""

from __future__ import annotations

from snapd.errors import DiskError
from snapd.flusher.budget import FULL, Budget
from snapd.repository import ManifestSummary, Repository


def commit_in_room(repository: Repository, budget: Budget, *, settled: bool) -> ManifestSummary:
    """Commit and, if `settled`, prune. Raises DiskError.

    On a full disk the generation before the newest makes room for the next one: it is about as long
    as what is to be written. Packs that only it names go with it. Nothing else makes room here, and
    no block that lives. While a source is not settled nothing is deleted, so nothing makes room.

    Crash argument: the newest generation was read back when it was committed, and stays until the
    next one has been. Between the two steps it is the only one, as with a retention of one.
    """
    retain = 1 if budget.pressed else None
    try:
        return repository.commit(prune=settled, retain=retain, write_debt_bytes=budget.write_debt())
    except DiskError as error:
        if error.errno not in FULL or not settled:
            raise
        if not repository.prune(retain=1).manifests:
            raise
    return repository.commit(prune=True, retain=None, write_debt_bytes=budget.write_debt())
