"""The attach port: one way to list a store's blocks and to give blocks back, an adapter a store."""

from snapd.attach.port import Changes, Feed, Fill, Registered, Scan, Sink, Source

__all__ = ["Changes", "Feed", "Fill", "Registered", "Scan", "Sink", "Source"]
