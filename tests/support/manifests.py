"""The files in k8s/ as tests want them: objects, pods wherever they are, sizes in bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "k8s"
FILES = sorted(KUBERNETES.rglob("*.yaml"))
GIB = 1 << 30
MIB = 1 << 20
POD_ADDRESS = "10.0.0.7"

_UNITS = {"": 1, "Ki": 1 << 10, "Mi": MIB, "Gi": GIB, "Ti": 1 << 40}


@dataclass(frozen=True)
class PodSpec:
    """A pod's template or a pod, and where it is written."""

    file: Path
    name: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.file.stem}/{self.name}"

    @property
    def containers(self) -> list[Mapping[str, Any]]:
        return list(self.spec["containers"])

    def container(self, name: str) -> Mapping[str, Any] | None:
        return next((one for one in self.containers if one["name"] == name), None)

    def volume(self, name: str) -> Mapping[str, Any]:
        return next(one for one in self.spec["volumes"] if one["name"] == name)


def objects(file: Path) -> list[Mapping[str, Any]]:
    return [one for one in yaml.safe_load_all(file.read_text()) if one is not None]


def pods() -> list[PodSpec]:
    return [pod for file in FILES for one in objects(file) for pod in _pods_of(file, one)]


def snapd_pods() -> list[PodSpec]:
    """Those with a daemon in them."""
    return [pod for pod in pods() if pod.container("snapd")]


def roles(group: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {role["name"]: role for role in group["spec"]["roles"]}


def environment(container: Mapping[str, Any]) -> dict[str, str]:
    """Variables; those that the cluster fills in have a value of the kind that it would give."""
    found = {}
    for variable in container.get("env", []):
        field = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        found[variable["name"]] = (
            {"status.podIP": POD_ADDRESS}[field] if field else variable["value"]
        )
    return found


def size(quantity: str) -> int:
    """Bytes. Raises ValueError for what the manifests have no need of."""
    found = re.fullmatch(r"(\d+)([KMGT]i)?", quantity)
    if not found:
        raise ValueError(quantity)
    return int(found[1]) * _UNITS[found[2] or ""]


def memory_limit(container: Mapping[str, Any]) -> int:
    return size(container["resources"]["limits"]["memory"])


def snapd_command(container: Mapping[str, Any]) -> list[str]:
    """Arguments of `snapd`; empty for another program."""
    command = [*container.get("command", []), *container.get("args", [])]
    return command[1:] if command[:1] == ["snapd"] else []


def _pods_of(file: Path, one: Mapping[str, Any]) -> Iterator[PodSpec]:
    name = one["metadata"]["name"]
    match one["kind"]:
        case "Pod":
            yield PodSpec(file, name, one["metadata"]["labels"], one["spec"])
        case "StatefulSet":
            template = one["spec"]["template"]
            yield PodSpec(file, name, template["metadata"]["labels"], template["spec"])
        case "RoleBasedGroup":
            for role, spec in roles(one).items():
                template = spec["standalonePattern"]["template"]
                yield PodSpec(file, role, template["metadata"]["labels"], template["spec"])
