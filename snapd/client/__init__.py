"""The client that SGLang uses, with the names and return codes of `mooncake.store`."""

from snapd.client.handle import BufferHandle
from snapd.client.replicate import ObjectDataType, ReplicateConfig, SoftPinAction
from snapd.client.store import MooncakeDistributedStore
from snapd.client.unsupported import UnsupportedMethodError

__all__ = [
    "BufferHandle",
    "MooncakeDistributedStore",
    "ObjectDataType",
    "ReplicateConfig",
    "SoftPinAction",
    "UnsupportedMethodError",
]
