"""The bundled store as SGLang's Mooncake backend sees it."""

from __future__ import annotations

from typing import Any

from snapd.client import MooncakeDistributedStore
from snapd.sglang.options import Options

MOONCAKE_OF_BUNDLED: dict[str, Any] = {
    "client_server_address": "",
    "metadata_server": "P2PHANDSHAKE",
    "global_segment_size": 0,
    "protocol": "tcp",
    "device_name": "",
    "check_server": False,
    "standalone_storage": False,
    "enable_ssd_offload": False,
    "ssd_offload_path": None,
    "tenant_id": "default",
}
"""Mooncake's names that say nothing of the bundled store, with values that make SGLang do nothing
about them. Its memory and its disk are settings of `snapd` (docs/settings.md)."""


class PatientStore(MooncakeDistributedStore):
    """A client that need not find its store at once: until it does, every lookup is a miss."""

    must_answer_at_setup = False


def bundled_config(options: Options) -> dict[str, Any]:
    """Mooncake's names for SGLang, all of them, so that it looks for none elsewhere."""
    return {**MOONCAKE_OF_BUNDLED, "master_server_address": options.address}
