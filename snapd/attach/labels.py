"""`LabelIds`: the repository's ids for the labels that are in the keys of the bundled store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from snapd.blocks import KeyColumn
from snapd.blocks.labels import label_numbers, number_as_label, number_of_recorded
from snapd.config import event
from snapd.errors import SnapdError

_LOG = logging.getLogger(__name__)

ASKED_MAX = 1024
"""Most labels that a store is asked about at once; it keeps no more."""

AskStore = Callable[[list[int]], list[str]]
"""What the store's clients called the labels of these numbers, "" where nobody has said it lately.
Raises SnapdError when the store does not answer."""


class LabelIds:
    """For any thread. Which label a block has is in its key; the id is what a pack says beside it,
    with the label's text, for people who look into it."""

    def __init__(
        self, known: Callable[[], Mapping[int, str]], number: Callable[[str], int]
    ) -> None:
        """`known` gives the repository's labels by id, `number` the id of a label, new or not; it
        raises RefusedError when the table is full."""
        self._known = known
        self._number = number
        self._ids: dict[int, int] = {0: 0}
        """By number; at most as many as the repository has ids."""
        self._lock = threading.Lock()

    def of(self, keys: KeyColumn, ask: AskStore) -> npt.NDArray[np.uint16]:
        """The id of each key's label, uint16 [n]; 0 for keys without one. Never raises.

        A label whose text nobody knows is called by its number: the client that said it is gone,
        and so is the store that it said it to.
        """
        numbers = label_numbers(keys)
        if not numbers.any():
            return np.zeros(len(keys), np.uint16)
        different, places = np.unique(numbers, return_inverse=True)
        with self._lock:
            self._learn([n for n in different.tolist() if n not in self._ids], ask)
            ids = [self._ids.get(number, 0) for number in different.tolist()]
        result: npt.NDArray[np.uint16] = np.array(ids, np.uint16)[places]
        return result

    def _learn(self, numbers: list[int], ask: AskStore) -> None:
        """Find ids for these: in the repository's table, else by the text that the store knows."""
        if not numbers:
            return
        recorded = {number_of_recorded(label): one for one, label in self._known().items()}
        self._ids |= {number: recorded[number] for number in numbers if number in recorded}
        for number, text in _texts([n for n in numbers if n not in recorded], ask).items():
            try:
                self._ids[number] = self._number(text or number_as_label(number))
            except SnapdError as error:
                event(_LOG, logging.WARNING, "left blocks unlabelled on the disk", error=error)
                return


def _texts(numbers: list[int], ask: AskStore) -> dict[int, str]:
    """What the store knows of these labels."""
    texts = dict.fromkeys(numbers, "")
    try:
        for at in range(0, len(numbers), ASKED_MAX):
            some = numbers[at : at + ASKED_MAX]
            texts |= zip(some, ask(some), strict=True)
    except SnapdError as error:
        event(_LOG, logging.INFO, "labels of blocks are called by their numbers", error=error)
    return texts
