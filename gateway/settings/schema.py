"""The configuration's JSON Schema, for editors: completion, descriptions and a first check while typing.

It describes shapes; what `load_settings` checks beyond them (references, files, what belongs together) is not in it.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from backends.registry import BackendType, backend_types
from gateway.settings.validate import keys_of
from gateway.settings.written import NAME_PATTERN, ModelSection, SettingsSection

_REFERENCE = "#/$defs/{model}"


def settings_schema() -> dict[str, Any]:  # Any: JSON
    """JSON Schema (2020-12) of the configuration, with the options of every backend that is installed.

    The same for the same installation: backends stand in the order of their names.
    """
    schema = SettingsSection.model_json_schema(ref_template=_REFERENCE)
    definitions = schema["$defs"]
    common = definitions.pop(ModelSection.__name__)
    kinds = [kind for _, kind in sorted(backend_types().items())]
    for kind in kinds:
        definitions[_name(kind)] = _model_schema(kind, common, definitions)
    any_kind = {"anyOf": [{"$ref": _REFERENCE.format(model=_name(kind))} for kind in kinds]}
    for definition in definitions.values():
        _drop_derived_defaults(definition)
    _drop_derived_defaults(schema)
    for section, entry in (("models", any_kind), ("routes", {"$ref": _REFERENCE.format(model="RouteSection")})):
        schema["properties"][section] |= {"additionalProperties": entry, "propertyNames": {"pattern": NAME_PATTERN}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Pointsman configuration"} | {
        key: value for key, value in schema.items() if key != "title"
    }


def _name(kind: BackendType) -> str:
    return f"Model-{kind.name}"


def _model_schema(kind: BackendType, common: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The keys of every model and the options of *kind*, whose own definitions move to *definitions*."""
    options = TypeAdapter(kind.options).json_schema(ref_template=_REFERENCE)
    definitions |= options.pop("$defs", {})
    own = {key: value for key, value in options.get("properties", {}).items() if key not in keys_of(ModelSection)}
    properties = {**common["properties"], **own, "backend": {"const": kind.name}}
    required = sorted({"backend", *(key for key in options.get("required", ()) if key in own)})
    return {**common, "properties": properties, "required": required, "title": f"Model with backend {kind.name}"}


def _drop_derived_defaults(definition: dict[str, Any]) -> None:
    """Remove the defaults that are kept in base units (`1.0` for 1s), which could not be written so in a file."""
    for described in definition.get("properties", {}).values():
        if described.get("type") == ["string", "integer"] or "$ref" in described:
            described.pop("default", None)
