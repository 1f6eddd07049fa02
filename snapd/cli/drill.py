"""`snapctl drill`: the command is the drill's own."""

from snapd.drill.command import drill

__all__ = ["drill"]
