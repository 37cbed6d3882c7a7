"""The JSON schema of the configuration file, for editors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from esper.configs.nissa import NissaSettings
from esper.configs.oona import OonaSettings
from esper.configs.settings import LoggingSettings, TamiyoSettings, TrainingSettings
from esper.configs.urza import UrzaSettings

_REFERENCE = {"type": "string", "pattern": r"\$\{"}
_NUMBERS = {"integer", "number", "boolean"}
_CLOSED = {"enum", "pattern"}
COMPONENTS: dict[str, type[BaseModel]] = {
    "tamiyo": TamiyoSettings,
    "urza": UrzaSettings,
    "nissa": NissaSettings,
    "oona": OonaSettings,
}
"""The components that esper reads, and the settings of each."""


def editor_schema(model: type[BaseModel]) -> dict[str, Any]:
    """JSON schema of the file `model` is loaded from: what is written before `${VAR}` is replaced.

    The open sections offer the settings of the main job and still accept other keys.
    """
    schema = model.model_json_schema()
    properties, shared = schema["properties"], schema["$defs"]
    properties["training"] = _open(TrainingSettings, "training", shared)
    properties["logging"] = _open(LoggingSettings, "logging", shared)
    properties["components"]["properties"] = {
        name: {"$ref": "#/$defs/ComponentConfig", "properties": {"config": _open(settings, "config", shared)}}
        for name, settings in COMPONENTS.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Esper configuration",
        **_with_references({key: value for key, value in schema.items() if key != "title"}),
    }


def _open(model: type[BaseModel], title: str, shared: dict[str, Any]) -> dict[str, Any]:
    """The settings' schema; the sections in it go to `shared`, where references look for them."""
    schema = model.model_json_schema()
    shared.update(schema.pop("$defs", {}))
    return {**schema, "title": title, "additionalProperties": True}


def _with_references(node: Any) -> Any:
    """Wherever a constrained leaf is asked for, a string with a `${VAR}` in it is right too."""
    if isinstance(node, list):
        return [_with_references(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value if key in ("default", "enum") else _with_references(value) for key, value in node.items()}
    if isinstance(kept.get("description"), str):
        kept["description"] = kept["description"].partition("\n\n")[0]
    if node.get("type") not in _NUMBERS and not (node.get("type") == "string" and _CLOSED & node.keys()):
        return kept
    described = {key: kept.pop(key) for key in ("title", "description", "default") if key in kept}
    return {"anyOf": [kept, _REFERENCE], **described}
