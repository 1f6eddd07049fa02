"""What `SnapdHiCache` decides without SGLang: options, parameters of `setup`, places on disk,
labels, chains of pages, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fault_ledger import FaultClass, case

from snapd.blocks.labels import LABEL_LENGTH_MAX
from snapd.errors import LockHeldError, SettingError
from snapd.sglang.label import label_of
from snapd.sglang.options import CONFIG_PATH_VARIABLE, read_options
from snapd.sglang.places import RankName, claim_place
from snapd.sglang.refusals import check_config, check_pool, check_second_pool
from snapd.sglang.tracing import ChainTrace
from snapd.sglang.wheel import SINCE, careful_class, setup_parameters, suited

BASE = {"MOONCAKE_MASTER": "10.0.0.1:50051"}
OPTIONS = read_options({}, {})


# --- options --------------------------------------------------------------------------------------


def test_names_of_ours_are_looked_up_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.json"
    path.write_text(json.dumps({"snapd_store": "mooncake", "snapd_trace": "off"}))
    environment = {**BASE, CONFIG_PATH_VARIABLE: str(path), "SNAPD_RUNTIME_DIR": "/run/mine"}
    options = read_options({"snapd_fingerprint": "blue"}, environment)
    assert (options.store, options.trace) == ("mooncake", False)
    assert (options.runtime_dir, options.fingerprint) == ("/run/mine", "blue")
    again = read_options({"snapd_store": "bundled", "snapd_trace": True}, environment)
    assert (again.store, again.trace, again.address) == ("bundled", True, "unix:/run/mine")


def test_the_bundled_store_needs_no_address() -> None:
    assert read_options({}, BASE).address == "unix:/run/mooncake-snapd"
    found = read_options({"master_server_address": "unix:/run/other"}, BASE)
    assert (found.address, found.source) == ("unix:/run/other", "the extra config")


@pytest.mark.parametrize(
    ("extra", "environment", "words"),
    [
        ({"snapd_stores": "bundled"}, {}, "snapd_stores.*did you mean snapd_store"),
        ({"snapd_store": "redis"}, {}, "snapd_store = 'redis'"),
        ({"snapd_trace": "perhaps"}, {}, "snapd_trace = 'perhaps' is neither true nor false"),
        ({"snapd_trace": [1]}, {}, r"snapd_trace = \[1\] is not true or false"),
        ({"snapd_runtime_dir": 7}, {}, "snapd_runtime_dir = 7 is not text"),
        (
            {"master_server_address": "m:1", "enable_ssd_offload": "sometimes"},
            {},
            "enable_ssd_offload = 'sometimes'",
        ),
        ({}, {CONFIG_PATH_VARIABLE: "/nowhere.json"}, "nowhere.json.*correct it, or unset"),
        ({}, {"SNAPD_STORE": "redis"}, "store = 'redis' in environment"),
    ],
)
def test_what_cannot_be_used_is_named(
    extra: dict[str, Any], environment: dict[str, str], words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        read_options(extra, environment)


@pytest.mark.parametrize("text", ["[1, 2]", "{", '"text"', "", "[" * 100_000])
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mooncake.json"
    path.write_text(text)
    with pytest.raises(SettingError, match=r"mooncake\.json"):
        read_options({}, {CONFIG_PATH_VARIABLE: str(path)})


def test_text_that_says_false_switches_nothing_on() -> None:
    """SGLang takes any text for true."""
    extra = {"master_server_address": "m:1", "enable_ssd_offload": "false"}
    assert read_options({**extra, "snapd_store": "mooncake"}, {}).enable_ssd_offload is False


# --- parameters of setup --------------------------------------------------------------------------


class Old:
    """Knows one of the three."""

    def setup(self, hostname: str, *, ssd_offload_path: str = "") -> int:
        self.said = (hostname, ssd_offload_path)
        return len(hostname)


class Compiled:
    """Whose `setup` shows no signature but in its text, as an extension module's."""

    class _Function:
        __doc__ = (
            "setup(*args, **kwargs)\nOverloaded function.\n\n"
            "1. setup(self: m.Store, local_hostname: str, engine: object = None, "
            "enable_ssd_offload: bool = False, ssd_offload_path: str = '') -> int\n\n"
            "2. setup(self: m.Store, config: dict) -> int\n\nSupported keys:\n  tenant_id: no."
        )
        __signature__ = "none"

        def __call__(self, *_: object) -> int:
            return 0

    setup = _Function()


class Silent(Compiled):
    """Built without docstrings."""

    class _Function(Compiled._Function):
        __doc__ = None

    setup = _Function()


def test_a_parameter_is_known_by_the_signature_however_it_shows() -> None:
    assert setup_parameters(Old) == {"ssd_offload_path"}
    assert setup_parameters(Compiled) == {"enable_ssd_offload", "ssd_offload_path"}
    assert setup_parameters(Silent) == SINCE.keys()  # no wheel here: nothing is known, let it say
    assert setup_parameters(type("Any", (), {"setup": lambda self, **_: 0})) == SINCE.keys()


def test_exactly_what_is_missing_is_left_out(tmp_path: Path) -> None:
    given_up: list[bool] = []
    careful = careful_class(
        Old,
        {"enable_ssd_offload": True, "ssd_offload_path": "/root"},
        lambda: (str(tmp_path), lambda: given_up.append(True)),
    )
    store = careful()
    assert store.setup("host") == 4
    assert store.said == ("host", str(tmp_path))
    del store
    assert given_up == [True]


def test_nothing_is_claimed_for_a_version_without_the_parameter() -> None:
    class Older:
        def setup(self) -> int:
            return 0

    def claim() -> Any:
        raise AssertionError("a directory was claimed")

    assert careful_class(Older, {"ssd_offload_path": "/root"}, claim)().setup() == 0


def test_a_type_error_of_the_wheel_is_let_through() -> None:
    """Even one whose words name the parameter, which SGLang takes for a version without it."""

    class Strict(Old):
        def setup(self, hostname: str, *, ssd_offload_path: str = "") -> int:
            raise TypeError("setup(): incompatible arguments, ssd_offload_path='/x'")

    careful = careful_class(Strict, {"ssd_offload_path": "/x"}, lambda: ("/x", lambda: None))
    with pytest.raises(TypeError, match="incompatible arguments"):
        careful().setup("host")


def test_a_tenant_is_never_left_out() -> None:
    with pytest.raises(SettingError, match=r"tenant_id = 'a'.*0\.3\.12"):
        suited({"tenant_id": "a"}, frozenset())


# --- places on disk -------------------------------------------------------------------------------

_RANK = """
import sys
from snapd.sglang.places import RankName, claim_place
from snapd.errors import LockHeldError
try:
    place = claim_place(sys.argv[1], RankName(0, int(sys.argv[2]), 0, 0), wait_seconds=0.2)
except LockHeldError as error:
    print(error, flush=True)
else:
    print("mine", place.path, flush=True)
    sys.stdin.read()
"""


def rank_process(root: Path, tp_rank: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _RANK, str(root), str(tp_rank)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_two_processes_never_have_the_same_directory(tmp_path: Path) -> None:
    root = tmp_path / "offload"
    processes = [rank_process(root, tp_rank) for tp_rank in (0, 0, 0, 1, 1, 2)]
    try:
        answers = [said(process) for process in processes]
        mine = sorted(answer for answer in answers if answer.startswith("mine"))
        assert mine == [f"mine {root}/rank_0_{rank}_0_0\n" for rank in range(3)]
        assert sum("give every SGLang server" in answer for answer in answers) == 3
        # By another path to the same directory it is the same directory.
        link = tmp_path / "link"
        link.symlink_to(root)
        with pytest.raises(LockHeldError, match="another process uses its rank_0_2_0_0"):
            claim_place(str(link), RankName(0, 2, 0, 0), wait_seconds=0)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    with case(FaultClass.KILL, "ranks that had a place on disk"):
        again = claim_place(str(root), RankName(0, 2, 0, 0))
        assert Path(again.path).is_dir()
        again.release()


def test_a_place_is_waited_for_while_its_last_owner_dies(tmp_path: Path) -> None:
    process = rank_process(tmp_path, 0)
    assert said(process).startswith("mine")
    assert process.stdin is not None
    process.stdin.close()
    place = claim_place(str(tmp_path), RankName(0, 0, 0, 0), wait_seconds=10)
    place.release()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


# --- labels and chains ----------------------------------------------------------------------------

CONFIG: Mapping[str, Any] = {
    "model_name": "meta/llama",
    "is_mla_model": False,
    "tp_rank": 0,
    "tp_size": 2,
    "pp_rank": 0,
    "pp_size": 1,
    "attn_cp_rank": 0,
    "attn_cp_size": 1,
    "dcp_size": 1,
    "should_split_heads": False,
    "tp_lcm_size": None,
}
POOL: Mapping[str, Any] = {"dtype": "torch.bfloat16", "layout": "page_first", "page_size": 16}
SERVER: Mapping[str, Any] = {"model_path": "/models/x y", "weight_version": "1"}


def label(
    config: Mapping[str, Any] | None = None,
    server: Mapping[str, Any] | None = None,
    pool: Mapping[str, Any] | None = None,
    **more: Any,
) -> str:
    return label_of(
        SimpleNamespace(**{**CONFIG, **(config or {})}),
        {**SERVER, **(server or {})},
        {"kv": SimpleNamespace(**{**POOL, **(pool or {})})},
        **more,
    )


def test_a_label_says_what_keys_do_not() -> None:
    others = [
        label({"model_name": "meta/llama2"}),
        label({"is_mla_model": True}),
        label({"tp_size": 4}),
        label({"pp_size": 2}),
        label(server={"weight_version": "2"}),
        label(server={"kv_cache_dtype": "fp8_e4m3"}),
        label(server={"quantization": "awq"}),
        label(server={"revision": "main"}),
        label(pool={"dtype": "torch.float16"}),
        label(pool={"layout": "page_first_direct"}),
        label(pool={"page_size": 64}),
        label(pool={"start_layer": 4}),
        label(fingerprint="mine"),
        label({"attn_cp_size": 2}),
        label({"attn_cp_size": 2, "attn_cp_rank": 1}),
    ]
    assert len({label(), *others}) == 1 + len(others)
    assert "model_path=/models/x%20y" in label()


def test_ranks_that_share_a_cache_have_one_label() -> None:
    assert label({"tp_rank": 1}) == label()
    heads = {"layout": "page_head", "head_num": 4, "size_per_token": 64}
    half = {"layout": "page_head", "head_num": 2, "size_per_token": 32}
    two, four = {"tp_lcm_size": 4, "tp_size": 2}, {"tp_lcm_size": 4, "tp_size": 4}
    assert label(two, pool=heads) == label(four, pool=half)
    assert label(two, pool=heads) != label(four, pool=heads)
    assert label({"tp_size": 2}, pool=heads) != label({"tp_size": 4}, pool=half)


def test_a_label_that_is_too_long_is_a_digest() -> None:
    long = label(server={"json_model_override_args": "x" * LABEL_LENGTH_MAX})
    assert long.startswith("xxh3_128=")
    assert long != label(server={"json_model_override_args": "y" * LABEL_LENGTH_MAX})


class Heard:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lookups: list[tuple[list[int], int, int, int]] = []

    def lookup(self, pages: Any, *, parent: int = 0, depth: int = 0, hits: int) -> None:
        self.lookups.append((list(map(int, pages)), parent, depth, hits))


def test_a_chain_is_told_with_what_came_before_it() -> None:
    heard = Heard()
    trace = ChainTrace(heard)
    hashes = [f"{number:016x}" + 48 * "0" for number in range(1, 5)]
    trace.lookup(hashes[:2], None, 1)
    trace.lookup(hashes[2:], SimpleNamespace(prefix_keys=hashes[:2]), 0)
    trace.lookup(hashes[:1], SimpleNamespace(prefix_keys=(None,)), 0)  # as SGLang 0.5.6 has it
    trace.lookup([], None, 0)
    ChainTrace(None).lookup(hashes, None, 4)
    assert heard.lookups == [([1, 2], 0, 0, 1), ([3, 4], 2, 2, 0), ([1], 0, 0, 0)]


# --- refusals -------------------------------------------------------------------------------------

CONTEXT_PARALLEL = {"attn_cp_size": 2}


def test_context_parallel_ranks_need_labels() -> None:
    config = SimpleNamespace(**{**CONFIG, **CONTEXT_PARALLEL})
    check_config(config, {"interface_v1": 1}, OPTIONS)
    mooncake = read_options({"snapd_store": "mooncake"}, BASE)
    with pytest.raises(SettingError, match=r"attn_cp_size = 2.*use snapd_store = bundled"):
        check_config(config, {"interface_v1": 1}, mooncake)


def test_a_pool_that_does_not_say_where_its_pages_are_is_refused() -> None:
    def unsupported(_: object) -> None:
        raise ValueError("Unsupported layout: odd")

    pool = SimpleNamespace(kv_buffer=1, layout="odd", get_page_buffer_meta=unsupported)
    config = SimpleNamespace(**CONFIG)
    with pytest.raises(SettingError, match=r"layout 'odd'.*Unsupported layout: odd.*page_first"):
        check_pool(config, pool, None)
    check_pool(config, SimpleNamespace(kv_buffer=None), None)  # a logical one has no pages


def test_a_draft_model_that_only_one_rank_would_store_is_refused() -> None:
    config = SimpleNamespace(**{**CONFIG, "is_mla_model": True})
    check_second_pool(config, "draft", is_mha=False)
    check_second_pool(config, "mamba", is_mha=True)
    with pytest.raises(SettingError, match=r"'draft'.*tp_size = 2"):
        check_second_pool(config, "draft", is_mha=True)


@pytest.mark.parametrize(
    ("is_mla", "pieces", "is_right"), [(False, 2, True), (False, 8, False), (True, 4, True)]
)
def test_a_page_in_pieces_is_refused(is_mla: bool, pieces: int, is_right: bool) -> None:
    """Unless it is MLA's, whose pages may lie in one piece for each layer."""
    config = SimpleNamespace(**{**CONFIG, "is_mla_model": is_mla})
    meta = ([0] * pieces, [16] * pieces)
    pool = SimpleNamespace(kv_buffer=1, layout="any", get_page_buffer_meta=lambda _: meta)
    if is_right:
        check_pool(config, pool, None)
        return
    with pytest.raises(SettingError, match=r"layout 'any' has a page in 8 pieces"):
        check_pool(config, pool, None)
