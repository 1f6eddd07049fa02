"""What a RoleBasedGroup of the manifests may hold: a schema of the fields that they use.

The whole of it is that project's CustomResourceDefinition; where SNAPD_TEST_RBG_CRD names its file,
the manifests are checked against that as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

VERSION = "v1alpha2"


def _closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


_NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
_ROLLOUT = _closed(
    ["type"],
    type={"enum": ["RollingUpdate"]},
    rollingUpdate=_closed(
        [],
        type={"enum": ["RecreatePod", "InPlaceIfPossible", "InPlaceOnly"]},
        maxUnavailable={"type": ["integer", "string"]},
        maxSurge={"type": ["integer", "string"]},
        partition={"type": ["integer", "string"]},
        paused={"type": "boolean"},
        inPlaceUpdateStrategy=_closed([], gracePeriodSeconds={"type": "integer", "minimum": 0}),
    ),
)
_ROLE = _closed(
    ["name", "standalonePattern"],
    name=_NAME,
    replicas={"type": "integer", "minimum": 0},
    minReadySeconds={"type": "integer", "minimum": 0},
    dependencies={"type": "array", "items": _NAME},
    rolloutStrategy=_ROLLOUT,
    servicePorts={
        "type": "array",
        "items": _closed(["name", "port"], name=_NAME, port=_PORT, targetPort={}),
    },
    standalonePattern=_closed(
        ["template"],
        template=_closed(
            ["metadata", "spec"], metadata=_closed([], labels=_LABELS), spec={"type": "object"}
        ),
    ),
)
GROUP = _closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": f"workloads.x-k8s.io/{VERSION}"},
    kind={"const": "RoleBasedGroup"},
    metadata=_closed(["name"], name=_NAME, labels=_LABELS),
    spec=_closed(["roles"], roles={"type": "array", "minItems": 1, "items": _ROLE}),
)


def full_schema(definition: Path) -> Any:
    """The schema in a CustomResourceDefinition. Raises LookupError if it is not there."""
    for one in yaml.safe_load_all(definition.read_text()):
        if one and one["spec"]["names"]["kind"] == "RoleBasedGroup":
            for version in one["spec"]["versions"]:
                if version["name"] == VERSION:
                    return _strict(version["schema"]["openAPIV3Schema"])
    raise LookupError(f"{definition} defines no RoleBasedGroup of {VERSION}")


def _strict(schema: Any) -> Any:
    """The same, refusing fields that it does not name, as `kubectl apply` does; with Kubernetes'
    integers or strings said in JSON Schema's way."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict):
        made["properties"] = {k: _strict(v) for k, v in schema["properties"].items()}
        open_ended = "additionalProperties" in schema or schema.get(
            "x-kubernetes-preserve-unknown-fields"
        )
        if schema.get("type") == "object" and not open_ended:
            made["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made
