"""The flags that the manifests give SGLang are flags of it, and its backend class is ours."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import manifests

from snapd.sglang.options import read_options

ENGINES = [
    (str(pod), one) for pod in manifests.pods() for one in pod.containers if one["name"] == "sglang"
]


def test_every_flag_is_one_of_sglangs() -> None:
    environment = Path(os.environ["SNAPD_TEST_SGLANG_PYTHON"]).absolute().parents[1]
    fields = environment.glob("lib/python*/site-packages/sglang/srt/arg_groups/fields/*.py")
    text = "".join(file.read_text() for file in fields)
    flags = {flag.split("=")[0] for _, one in ENGINES for flag in one["args"]}
    assert len(flags) >= 10
    known = {
        f"--{name.replace('_', '-')}" for name in re.findall(r"^    (\w+): ", text, re.MULTILINE)
    }
    assert flags - known == set()


def test_the_bundled_pod_loads_our_backend() -> None:
    [arguments] = [one["args"] for name, one in ENGINES if name.startswith("bundled-pod/")]
    flag = "--hicache-storage-backend-extra-config="
    [extra] = [json.loads(one.removeprefix(flag)) for one in arguments if one.startswith(flag)]
    assert (extra["module_path"], extra["class_name"]) == ("snapd.sglang", "SnapdHiCache")
    assert extra["interface_v1"] == 1  # without it SGLang does not make the zero-copy calls
    options = read_options(extra, {})
    assert options.store == "bundled"
    [pod] = [one for one in manifests.snapd_pods() if one.file.stem == "bundled-pod"]
    assert options.runtime_dir in {
        mount["mountPath"] for mount in pod.containers[-1]["volumeMounts"]
    }
