"""The port to the file system and its implementations."""

from snapd.disk.port import DISK_ALIGNMENT, Disk, DiskFile, DiskLock, DiskUsage
from snapd.disk.posix import PosixDisk

__all__ = ["DISK_ALIGNMENT", "Disk", "DiskFile", "DiskLock", "DiskUsage", "PosixDisk"]
