"""What `snapctl doctor` looks at: facts about this host, rules over them, and what to do."""

from snapd.doctor.facts import Facts, FileSystem, Mooncake, Speed
from snapd.doctor.probe import probe
from snapd.doctor.rules import Finding, Level, examine

__all__ = ["Facts", "FileSystem", "Finding", "Level", "Mooncake", "Speed", "examine", "probe"]
