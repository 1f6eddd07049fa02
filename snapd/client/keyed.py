"""Calls that ask about keys, and remove them."""

from __future__ import annotations

import numpy as np

from snapd.client.arguments import encode_key, encode_keys_of
from snapd.client.calls import INVALID_PARAMS, NOT_FOUND, OK, Calls, pick
from snapd.client.patterns import compile_pattern
from snapd.wire.codes import ReturnCode

_ANSWERS_OF_REMOVALS = (OK, NOT_FOUND, int(ReturnCode.OBJECT_HAS_LEASE))
"""Codes of a removal that was carried out: gone, gone before, or in use."""


class KeyCalls(Calls):
    """No value is touched."""

    def is_exist(self, key: str, /) -> int:
        """1 or 0; a negative code when no store answers. What exists is leased for a while."""
        return self.batch_is_exist([key])[0]

    def batch_is_exist(self, keys: list[str]) -> list[int]:
        """`is_exist` of many."""
        names = encode_keys_of(keys)
        return self._ask(names, lambda session, rows: session.exist(pick(names, rows)), 0)

    def get_size(self, key: str, /) -> int:
        """Bytes of the value, or OBJECT_NOT_FOUND."""
        names = [encode_key(key)]
        return self._ask(
            names,
            lambda session, rows: session.sizes(pick(names, rows)),
            NOT_FOUND,
        )[0]

    def remove(self, key: str, force: bool = False) -> int:
        """Remove a key. OBJECT_NOT_FOUND, or OBJECT_HAS_LEASE without `force` when it was found or
        read a moment ago. The removal lasts: it is durable before this returns where a daemon
        runs. WRITE_FAIL says that it happened, but that the disk does not know of it yet."""
        return self.batch_remove([key], force)[0]

    def batch_remove(self, keys: list[str], force: bool = False) -> list[int]:
        """`remove` of many; a code for each key."""
        names = encode_keys_of(keys)
        return self._ask(
            names,
            lambda session, rows: session.remove(pick(names, rows), force=force),
            NOT_FOUND,
        )

    def batch_replica_clear(self, keys: list[str], segment_name: str = "") -> list[str]:
        """Remove those of these keys that have no lease; the ones that went. A key has one replica,
        so that is `batch_remove`, for any client. Of a segment that is not named "" or like this
        host nothing is removed."""
        names = encode_keys_of(keys)
        if not isinstance(segment_name, str):
            raise TypeError(f"segment_name must be a str, not {type(segment_name).__name__}")
        if self._session is None or segment_name not in ("", self._hostname):
            return []
        codes = self.batch_remove(keys)
        return [name.decode() for name, code in zip(names, codes, strict=True) if code == OK]

    def remove_all(self, force: bool = False) -> int:
        """Remove every key, those with a lease only with `force`. The number removed, or a
        negative code; WRITE_FAIL as for `remove`."""
        session = self._session
        return INVALID_PARAMS if session is None else session.remove_all(force=force)

    def remove_by_regex(self, regex_pattern: str, force: bool = False) -> int:
        """Remove the keys in which the pattern is found, those with a lease only with `force`. The
        number removed, or a negative code: INVALID_PARAMS for what is no pattern, the first that a
        removal had, or WRITE_FAIL also when more keys may turn up: a daemon that has just started
        has not yet said what is on its disk.

        The pattern is read as ECMAScript's, over bytes, as the wheel does. Matching runs in the
        caller, so that one that never ends holds up nobody else. Only this client's own keys are
        looked at: those with its fingerprint.
        """
        pattern, session = compile_pattern(encode_key(regex_pattern)), self._session
        if session is None or pattern is None:
            return INVALID_PARAMS
        listing = session.names()
        if isinstance(listing, int):
            return listing
        matching = [name for name in listing.names if pattern.search(name)]
        codes = session.remove(matching, force=force)
        failed = codes[~np.isin(codes, _ANSWERS_OF_REMOVALS)]
        if len(failed):
            return int(failed[0])
        return int((codes == OK).sum()) if listing.complete else int(ReturnCode.WRITE_FAIL)
