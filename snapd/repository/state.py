"""What a repository knows while it is open."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from snapd.errors import CorruptError, DiskError
from snapd.formats.removals import Removals
from snapd.formats.tables import COUNTER_MAX, FINGERPRINTS_MAX, Incarnation
from snapd.repository.catalog import Catalog
from snapd.repository.names import PACK_SEQUENCE_MAX, SEQUENCE_MAX, next_number, pack_name


@dataclass(frozen=True, slots=True)
class PackInfo:
    """A readable pack on disk."""

    sequence: int
    pack_id: bytes
    index_digest: bytes
    rows: slice
    """Its rows in the catalog, in the order of its index; all of them are stored as long as this
    record is among `RepositoryState.packs`."""
    file_bytes: int
    epoch: int
    """Epoch of the repository when it was sealed."""
    removals: int
    """Removals that its index carries."""

    @property
    def name(self) -> str:
        """Where it lives."""
        return pack_name(self.sequence, self.pack_id)


@dataclass(slots=True)
class RepositoryState:
    """Everything that recovery finds and work changes; guarded by the catalog's lock."""

    repository_id: bytes
    catalog: Catalog = field(default_factory=Catalog)
    packs: dict[int, PackInfo] = field(default_factory=dict)
    """By sequence, in rising order."""
    incarnations: dict[bytes, Incarnation] = field(default_factory=dict)
    """By segment id."""
    ordinal_last: int = 0
    """Highest ordinal that was ever seen or given out."""
    fingerprints: dict[int, str] = field(default_factory=dict)
    pack_floor: int = 0
    """Of the newest manifest: packs up to here that it does not name are obsolete."""
    pack_last: int = 0
    """Highest pack number that a readable file says, or that was given out."""
    packs_taken: frozenset[int] = frozenset()
    """Numbers in the names of pack files at recovery, whatever is in them."""
    unreadable_packs: dict[str, int] = field(default_factory=dict)
    """Names, and the numbers in them, of pack files that recovery could not read."""
    condemned: set[int] = field(default_factory=set)
    """Packs that have to go as soon as nothing in them is live: no new manifest names them."""
    generation: int = 0
    """Of the newest manifest that was recovered or committed; 0 if there is none."""
    generation_recovered: int = 0
    """Of the manifest that recovery started from; 0 if there was none."""
    generation_last: int = 0
    """Highest generation that a readable manifest says, or that was given out."""
    generations_taken: frozenset[int] = frozenset()
    """Generations in the names of manifests at recovery, whatever is in them."""
    committed_ns: int = 0
    """When `generation` was committed; 0 if there is none."""
    manifest_bytes: dict[int, int] = field(default_factory=dict)
    """Length of each manifest that was recovered or committed by this object."""

    @property
    def epoch(self) -> int:
        """How many remove-alls there have been."""
        return self.catalog.epoch

    def pack_names(self) -> dict[int, str]:
        """Where each readable pack lives, by sequence."""
        return {sequence: pack.name for sequence, pack in self.packs.items()}

    def learn_incarnations(self, found: tuple[Incarnation, ...]) -> None:
        """Add incarnations from a file.

        A record whose sync failed may be there beside the one that was used instead. Epochs never
        fall, so the higher base is the one that was used; an ordinal stays with who had it first.
        """
        taken = {one.ordinal for one in self.incarnations.values()}
        for one in found:
            self.ordinal_last = max(self.ordinal_last, one.ordinal)
            known = self.incarnations.get(one.segment_id)
            if known is not None:
                base = max(known.epoch_base, one.epoch_base)
                self.incarnations[one.segment_id] = replace(known, epoch_base=base)
            elif one.ordinal not in taken:
                self.incarnations[one.segment_id] = one
                taken.add(one.ordinal)

    def learn_fingerprints(self, found: dict[int, str]) -> dict[int, int]:
        """Add labels from a file; returns the ids here of ids there, where they differ.

        They differ only after a repository was rebuilt without the file that knew them. Raises
        CorruptError when there are more labels than ids: no honest file brings so many.
        """
        moved: dict[int, int] = {}
        # Nearly always ours are the same, and each of many packs says them again.
        if found.items() <= self.fingerprints.items():
            return moved
        known = {label: our_id for our_id, label in self.fingerprints.items()}
        free = max(self.fingerprints, default=0)
        for their_id, label in found.items():
            our_id = known.get(label)
            if our_id is None:
                our_id = their_id if their_id not in self.fingerprints else free + 1
                if our_id >= FINGERPRINTS_MAX:
                    raise CorruptError(f"there is no id left for fingerprint {label!r}")
                known[label] = our_id
                self.fingerprints[our_id] = label
                free = max(free, our_id)
            if our_id != their_id:
                moved[their_id] = our_id
        return moved

    def fingerprint(self, label: str, wanted: int = 0) -> int:
        """The id of a label; a new one gets the id `wanted` if that is free, or the next."""
        for known_id, known in self.fingerprints.items():
            if known == label:
                return known_id
        free = wanted
        if not free or free in self.fingerprints:
            free = max(self.fingerprints, default=0) + 1
        self.fingerprints[free] = label
        return free

    def next_pack(self) -> int:
        """Give out a pack number. Raises DiskError when they are used up."""
        self.pack_last = next_number(self.pack_last, self.packs_taken, PACK_SEQUENCE_MAX)
        return self.pack_last

    def next_generation(self) -> int:
        """Give out a generation. Raises DiskError when they are used up."""
        taken = self.generations_taken
        self.generation_last = next_number(self.generation_last, taken, SEQUENCE_MAX)
        return self.generation_last

    def keep_dead(self, known: RepositoryState) -> None:
        """Kill here what is dead in `known`: a pack that cannot be read may be all that says so."""
        rows = known.catalog.rows()
        # An original that compaction copied has the version of its copy: it ended only with that.
        dead = rows[~known.catalog.is_live(known.catalog.newest_copies(rows))]
        self.catalog.remove(Removals.of_blocks(known.catalog.take(dead)))

    def next_ordinal(self) -> int:
        """The ordinal of the next incarnation: above every one that any version carries, and above
        those that were given out and failed to become durable, because they may be found later.
        Raises DiskError when they are used up."""
        highest = max(self.ordinal_last, self.catalog.ordinal_last)
        if highest >= COUNTER_MAX:
            raise DiskError("ordinals of incarnations are used up: move the repository aside")
        self.ordinal_last = highest + 1
        return self.ordinal_last
