"""The Dockerfile pins everything, copies what is let through, and runs as who the manifests say."""

from __future__ import annotations

import re
from pathlib import Path

import lock_images
import manifests
import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("name", list(lock_images.LOCKS))
def test_locks_name_what_the_requirements_name(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    lock = lock_images.LOCKS[name]
    wanted = lock_images.pins(*lock.sources)
    assert lock_images.locked(text) == wanted, "renew them: .venv/bin/python tools/lock_images.py"
    for entry in re.split(r"\n(?=\w)", text)[1:]:
        digests = re.findall(r"--hash=sha256:[0-9a-f]{64}(?: \\)?$", entry, re.MULTILINE)
        # A wheel of pure Python is one for all platforms.
        assert 1 <= len(digests) <= len(lock.platforms), entry


def test_a_lock_is_read_as_it_is_written() -> None:
    lock = lock_images.Lock(("runtime.txt",), ("x86_64",))
    wanted = {"a-b": "1.0", "c": "2"}
    text = lock_images.render(lock, wanted, {"a-b": {"0" * 64, "1" * 64}, "c": {"2" * 64}})
    assert lock_images.locked(text) == wanted


def test_the_base_is_pinned_and_pip_checks_hashes() -> None:
    assert re.search(r"^ARG BASE=python:\S+@sha256:[0-9a-f]{64}$", DOCKERFILE, re.M)
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", DOCKERFILE, re.MULTILINE)
    assert stages
    assert {base for base, _ in stages} <= {"${BASE}", *(name for _, name in stages)}
    assert stages[-1][1] == "snapd"  # what is built where no target is named
    for command in re.findall(
        r"pip(?: --python \S+)? install .*?(?=&&|\n[A-Z\n])", DOCKERFILE, re.S
    ):
        assert "--require-hashes" in command or "--no-deps /build/wheels" in command


def test_what_is_copied_is_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text()
    let_through = re.findall(r"^!(\S+)$", ignored, re.MULTILINE)
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for path in copied.split():
            assert (ROOT / path).exists()
            assert any(Path(path).match(pattern) for pattern in let_through), path


def test_the_user_is_that_of_the_manifests() -> None:
    users = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert users[-1] == ("10001", "10001")
    after_root = DOCKERFILE.rindex("USER 0:0")
    assert DOCKERFILE.index("USER 10001:10001", after_root) > after_root
    for pod in manifests.snapd_pods():
        daemon = pod.container("snapd")
        assert daemon is not None
        assert daemon["securityContext"]["runAsUser"] == int(users[-1][0])
        assert pod.spec["securityContext"]["runAsGroup"] == int(users[-1][1])
