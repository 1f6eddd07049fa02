"""Metadata as columns: keys, tables of blocks and the hash index over them."""

from snapd.blocks.index import HashIndex
from snapd.blocks.keys import KEY_BYTES_MAX, KeyColumn, hash_keys
from snapd.blocks.pages import page_id, page_ids, page_ids_of_hashes
from snapd.blocks.table import BlockTable, Codec, Pin, is_newer, version_order

__all__ = [
    "KEY_BYTES_MAX",
    "BlockTable",
    "Codec",
    "HashIndex",
    "KeyColumn",
    "Pin",
    "hash_keys",
    "is_newer",
    "page_id",
    "page_ids",
    "page_ids_of_hashes",
    "version_order",
]
