"""`Settings`: every setting, its default, its limits and what it means.

The field's name is its key in the TOML file; its environment variable is `SNAPD_<NAME>`, and the
name in `ENVIRONMENT` too where Mooncake already has one. `docs/settings.md` is generated from here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 50)]
FilePath = Annotated[str, Meta(min_length=1, pattern=r"^[^\x00]*$")]
SocketDirectory = Annotated[str, Meta(min_length=1, max_length=88, pattern=r"^[^\x00]*$")]
"""A socket's address has room for 107 bytes, of which file names take up to 19."""
Ratio = Annotated[float, Meta(gt=0, le=1)]
Url = Annotated[str, Meta(pattern=r"^http://(\[[0-9a-fA-F:.%]+\]|[^\s/:,\[\]]+)(:[0-9]{1,5})?/?$")]
ADMIN_PORT = 9003
"""Where Mooncake's master has its metrics and its admin HTTP unless it is told otherwise."""


def setting(description: str) -> Meta:
    """The text that documents a field."""
    return Meta(description=description)


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings, validated."""

    persistent_path: Annotated[FilePath, setting("Directory of the repository, on local NVMe.")] = (
        "/var/lib/mooncake-snapd"
    )
    snapshot_interval_sec: Annotated[
        Seconds, setting("Seconds from one snapshot's commit to the next.")
    ] = 300.0
    enable_warmup: Annotated[
        bool, setting("Load blocks back into memory after a restart. Off drops nothing from disk.")
    ] = True
    store: Annotated[
        Literal["bundled", "mooncake"], setting("Which store the daemon attaches to.")
    ] = "bundled"
    runtime_dir: Annotated[SocketDirectory, setting("Directory of the sockets.")] = (
        "/run/mooncake-snapd"
    )
    group_shared: Annotated[
        bool,
        setting("Share sockets and segment with processes of our group, not only of our user."),
    ] = False
    http: Annotated[
        str, setting("host:port of /metrics, /healthz, /readyz and /status; empty is off.")
    ] = "127.0.0.1:9470"
    flush_sec: Annotated[
        Seconds, setting("Seconds between flushes of new blocks: most of the loss window.")
    ] = 5.0
    poll_sec: Annotated[Seconds, setting("Seconds between looks at a Mooncake store.")] = 5.0
    mooncake_master: Annotated[
        Annotated[str, Meta(min_length=1)], setting("host:port of Mooncake's master.")
    ] = "127.0.0.1:50051"
    mooncake_admin: Annotated[
        Annotated[str, Meta(pattern=r"^$|:[0-9]{1,5}$")],
        setting(
            "host:port of the metrics and admin HTTP of Mooncake's master; empty is port "
            f"{ADMIN_PORT} of the master's host."
        ),
    ] = ""
    mooncake_stores: Annotated[
        Annotated[tuple[Url, ...], Meta(min_length=1, max_length=64)],
        setting("URLs of the Mooncake store services on this host; each mounts memory of ours."),
    ] = ("http://127.0.0.1:8088",)
    mooncake_reuse_sec: Annotated[
        Seconds,
        setting(
            "Seconds for which addresses of memory that a Mooncake store gave back are not used "
            "again; longer than default_kv_lease_ttl of the master and any read or write: "
            "Mooncake's clients give one up after 60 s."
        ),
    ] = 120.0
    mooncake_metadata: Annotated[
        Annotated[str, Meta(min_length=1)],
        setting("Metadata server of Mooncake's transfer engine, a URL or P2PHANDSHAKE."),
    ] = "P2PHANDSHAKE"
    mooncake_protocol: Annotated[
        Annotated[str, Meta(min_length=1)], setting("Mooncake's transport for putting blocks back.")
    ] = "tcp"
    mooncake_device: Annotated[str, setting("Device of that transport, where it needs one.")] = ""
    mooncake_local_hostname: Annotated[
        Annotated[str, Meta(min_length=1)],
        setting("Name by which Mooncake's other processes reach this host."),
    ] = "localhost"
    mooncake_python: Annotated[
        str,
        setting(
            "Python that has Mooncake's wheel, for the process that puts blocks back where the "
            "store service does not; empty is the daemon's own."
        ),
    ] = ""
    sglang_url: Annotated[
        Annotated[str, Meta(pattern=r"^(http://[^/\s]+/?)?$")],
        setting(
            "URL of SGLang's frontend. With Mooncake the label of blocks is learned from it where "
            "fingerprint is empty; without either they have none."
        ),
    ] = ""
    grace_sec: Annotated[
        Seconds, setting("Seconds that the flush on SIGTERM may take; keep it under the pod's.")
    ] = 25.0
    io_bytes_per_sec_max: Annotated[
        Bytes, setting("Limit of flush, background warm-up and compaction together; 0 is none.")
    ] = 0
    repository_bytes_max: Annotated[
        Bytes,
        setting("Most that the repository may take; 0 is the file system less its reserve."),
    ] = 0
    disk_reserve_bytes: Annotated[
        Bytes,
        setting("Bytes of the file system that snapd leaves free, at most a twentieth of it."),
    ] = 2**30
    write_bytes_per_day_max: Annotated[
        Bytes, setting("Most that is written to the disk in any 24 hours; 0 is no limit.")
    ] = 0
    retain: Annotated[
        Annotated[int, Meta(ge=1, le=10_000)], setting("Snapshot generations to keep.")
    ] = 3
    fingerprint: Annotated[
        Annotated[str, Meta(max_length=1024)],
        setting(
            "Label of blocks (model, dtype, layout, weights). A client of the bundled store puts "
            "and finds keys under it; with Mooncake only blocks of this label are put back."
        ),
    ] = ""
    enable_ssd_offload: Annotated[
        bool,
        setting(
            "Serve blocks that the bundled store evicts from the repository's packs (SSD tier). "
            "With store = mooncake it has no effect on snapd: Mooncake has a tier of its own."
        ),
    ] = False
    ssd_offload_path: Annotated[
        Annotated[str, Meta(pattern=r"^[^\x00]*$")],
        setting(
            "Directory of the repository where persistent_path is not set. Packs are the SSD tier, "
            "so there is one directory for both. Not with store = mooncake."
        ),
    ] = ""
    codec: Annotated[Literal["none", "zstd"], setting("How blocks are stored in packs.")] = "none"
    pack_bytes_max: Annotated[
        Annotated[int, Meta(ge=1 << 20, le=1 << 36)], setting("Bytes at which a pack is sealed.")
    ] = 256 * 2**20
    global_segment_size: Annotated[
        Annotated[int, Meta(ge=1 << 20, le=1 << 50)],
        setting(
            "Bytes of block data that the bundled store, or each Mooncake store, holds (or text "
            "such as 4gb). With store = mooncake, Mooncake's variable is passed over at 0, as its "
            "store service has it."
        ),
    ] = 4 * 2**30
    segment_path: Annotated[
        FilePath,
        setting(
            "Shared-memory file of the bundled store, which outlives the store process. Mooncake's "
            "files are in /dev/shm, with this name and more behind it."
        ),
    ] = "/dev/shm/mooncake-snapd.segment"  # noqa: S108 - shared memory is the point
    segment_blocks_max: Annotated[
        Annotated[int, Meta(ge=0, le=2**31)],
        setting("Blocks that a store can hold, resident and cold; 0 is one per 16 KiB."),
    ] = 0
    lease_sec: Annotated[
        Seconds, setting("Seconds for which a block that was found or read is not evicted.")
    ] = 10.0
    get_wait_sec: Annotated[
        Annotated[float, Meta(ge=0, le=3600)],
        setting("Seconds that a get waits for a cold block before it is a miss."),
    ] = 2.0
    eviction_high_watermark_ratio: Annotated[
        Ratio, setting("Share of memory in use at which eviction starts.")
    ] = 0.95
    eviction_ratio: Annotated[
        Ratio, setting("Share of memory freed by one eviction, in steps of 8192 blocks.")
    ] = 0.05
    log_format: Annotated[
        Literal["text", "json"], setting("key=value fields, or one JSON object a line.")
    ] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], setting("Least severe events to log.")
    ] = "info"


ENVIRONMENT: dict[str, str] = {
    "persistent_path": "MOONCAKE_STORE_PERSISTENT_PATH",
    "snapshot_interval_sec": "MOONCAKE_STORE_SNAPSHOT_INTERVAL_SEC",
    "enable_warmup": "MOONCAKE_STORE_ENABLE_WARMUP",
    "enable_ssd_offload": "MOONCAKE_ENABLE_SSD_OFFLOAD",
    "ssd_offload_path": "MOONCAKE_OFFLOAD_FILE_STORAGE_PATH",
    "global_segment_size": "MOONCAKE_GLOBAL_SEGMENT_SIZE",
    "mooncake_master": "MOONCAKE_MASTER",
    "mooncake_metadata": "MOONCAKE_TE_META_DATA_SERVER",
    "mooncake_protocol": "MOONCAKE_PROTOCOL",
    "mooncake_device": "MOONCAKE_DEVICE",
    "mooncake_local_hostname": "MOONCAKE_LOCAL_HOSTNAME",
}
"""Environment variables beside `SNAPD_<NAME>`, because Mooncake's users have them set."""

BYTE_SETTINGS = frozenset(
    {
        "io_bytes_per_sec_max",
        "repository_bytes_max",
        "disk_reserve_bytes",
        "write_bytes_per_day_max",
        "pack_bytes_max",
        "global_segment_size",
    }
)
"""Settings that also take text such as 512mb or 4GiB; every unit is a power of 1024."""


def admin_address(settings: Settings) -> str:
    """host:port of the admin HTTP of Mooncake's master."""
    host = settings.mooncake_master.rpartition(":")[0] or settings.mooncake_master
    return settings.mooncake_admin or f"{host}:{ADMIN_PORT}"


def environment_variables(name: str) -> tuple[str, ...]:
    """The variables that set the field `name`; the first that is set wins."""
    own = f"SNAPD_{name.upper()}"
    return (own, ENVIRONMENT[name]) if name in ENVIRONMENT else (own,)
