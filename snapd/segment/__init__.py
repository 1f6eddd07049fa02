"""The shared-memory file: mapping, slots, key index, extents, writers' locks."""
