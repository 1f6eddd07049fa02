"""What the wheel's class has and this client does not: said in plain words when asked for."""

from __future__ import annotations

from snapd.errors import SnapdError

_SUPPORTED = """
batch_get_buffer batch_get_into batch_get_into_multi_buffers batch_is_exist batch_put_from
batch_put_from_multi_buffers batch_remove batch_replica_clear batch_upsert_from close get
get_batch get_buffer get_hostname get_into get_into_ranges get_size health_check is_exist put
put_batch put_from put_parts register_buffer remove remove_all remove_by_regex setup
unregister_buffer upsert upsert_batch upsert_from upsert_parts
"""

_UNSUPPORTED = """
alloc_from_mem_pool allocate_and_mount_segment batch_get_into_multi_buffer_ranges
batch_get_replica_desc batch_get_session_end batch_get_session_start batch_get_tensor
batch_get_tensor_into batch_get_tensor_into_cuda batch_get_tensor_with_parallelism
batch_get_tensor_with_parallelism_into batch_get_tensor_with_tp batch_get_tensor_with_tp_into
batch_pub_tensor batch_pub_tensor_with_tp batch_put_from_multi_buffer_ranges
batch_put_session_end batch_put_session_revoke batch_put_session_start batch_put_tensor
batch_put_tensor_from batch_put_tensor_with_parallelism batch_put_tensor_with_parallelism_from
batch_put_tensor_with_tp batch_put_tensor_with_tp_from batch_upsert_pub_tensor
batch_upsert_tensor batch_upsert_tensor_from batch_upsert_tensor_with_parallelism
batch_upsert_tensor_with_parallelism_from create_copy_task create_move_task
get_offload_rpc_read_count get_replica_desc get_tensor get_tensor_into get_tensor_into_cuda
get_tensor_with_parallelism get_tensor_with_parallelism_into get_tensor_with_tp
get_tensor_with_tp_into init_all load_tensor_from_safetensor mount_segment pub_tensor
pub_tensor_with_tp put_from_with_metadata put_tensor put_tensor_from put_tensor_with_parallelism
put_tensor_with_parallelism_from put_tensor_with_tp put_tensor_with_tp_from query_task
save_tensor_to_safetensor setup_dummy unmount_and_free_segment unmount_local_disk_segment
unmount_segment upsert_pub_tensor upsert_tensor upsert_tensor_from
upsert_tensor_with_parallelism upsert_tensor_with_parallelism_from
"""

SUPPORTED_METHODS = frozenset(_SUPPORTED.split())
"""Public methods of the wheel's class that this client has."""

OWN_METHODS = frozenset({"set_fingerprint"})
"""Public methods of this client that the wheel's class does not have."""

UNSUPPORTED_METHODS = frozenset(_UNSUPPORTED.split())
"""Public methods of the wheel's class that this client does not have."""


class UnsupportedMethodError(SnapdError, AttributeError):
    """A method of the wheel that this client does not have.

    It is an `AttributeError`, so that `hasattr` says no and callers take the way that they have for
    older versions of the wheel.
    """


def missing_attribute(class_name: str, name: str) -> AttributeError:
    """The error to raise when `name` is looked up and not there."""
    if name in UNSUPPORTED_METHODS:
        return UnsupportedMethodError(
            f"{class_name}.{name} is a method of mooncake.store that snapd does not support; "
            f"supported are: {', '.join(sorted(SUPPORTED_METHODS))}"
        )
    return AttributeError(f"{class_name!r} object has no attribute {name!r}")
