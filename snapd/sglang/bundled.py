"""The bundled store as SGLang's Mooncake backend sees it."""

from __future__ import annotations

from typing import Any

from snapd.client import MooncakeDistributedStore
from snapd.errors import SettingError
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
    """A client that says its label from its first word on, and need not find its store at once.

    SGLang sets its store up before anybody has seen a host pool, which labels are made of. So
    `setup` is only noted, and carried out with the first label. While the store is away every
    lookup is a miss.
    """

    must_answer_at_setup = False

    def __init__(self) -> None:
        super().__init__()
        self._noted: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def setup(self, *arguments: Any, **named: Any) -> int:
        """Note the arguments for `take_label`. Always 0."""
        self._noted = (arguments, named)
        return 0

    def take_label(self, label: str) -> int:
        """Put and find keys under this label from now on; 0, or RPC_FAIL while the store is away.

        Raises SettingError when the arguments of `setup`, or settings, cannot be used.
        """
        if self._noted is None:
            return self.set_fingerprint(label)
        (arguments, named), self._noted = self._noted, None
        code = super().setup(*arguments, **named, fingerprint=label)
        if code != 0:
            raise SettingError(
                f"the client of the bundled store refuses its arguments ({code}): see the line "
                "before this one"
            )
        return self.health_check()


def bundled_config(options: Options) -> dict[str, Any]:
    """Mooncake's names for SGLang, all of them, so that it looks for none elsewhere."""
    return {**MOONCAKE_OF_BUNDLED, "master_server_address": options.address}
