"""The JSON Schema that editors complete from: whole, described, self-contained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from typer.testing import CliRunner

from transferctl.cli import app
from transferctl.spec import json_schema

TYPES = {"null", "boolean", "object", "array", "number", "string", "integer"}


def schemas(node: Any, path: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every subschema and its JSON pointer."""
    assert isinstance(node, dict | bool), f"{path} is no schema"
    if isinstance(node, bool):
        return
    yield path, node
    for keyword in ("properties", "$defs"):
        for name, inner in node.get(keyword, {}).items():
            yield from schemas(inner, f"{path}/{keyword}/{name}")
    for keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for i, inner in enumerate(node.get(keyword, [])):
            yield from schemas(inner, f"{path}/{keyword}/{i}")
    for keyword in ("items", "additionalProperties"):
        if keyword in node:
            yield from schemas(node[keyword], f"{path}/{keyword}")


def test_every_property_is_described():
    missing = [
        f"{path}/{name}"
        for path, schema in schemas(json_schema())
        for name, inner in schema.get("properties", {}).items()
        if not inner.get("description", "").strip()
    ]
    assert missing == []


def test_schema_is_draft_2020_12():
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for path, inner in schemas(schema):
        assert "definitions" not in inner, path  # draft 7's word
        assert not isinstance(inner.get("items"), list), path  # draft 2020-12: prefixItems
        if "type" in inner:
            assert {inner["type"]} <= TYPES if isinstance(inner["type"], str) else set(inner["type"]) <= TYPES, path
        assert set(inner.get("required", [])) <= set(inner.get("properties", {})), path
        for bound in ("exclusiveMinimum", "exclusiveMaximum"):  # numbers since draft 6
            assert not isinstance(inner.get(bound, 0), bool), path


def test_every_reference_leads_to_a_definition():
    schema = json_schema()
    references = {inner["$ref"] for _, inner in schemas(schema) if "$ref" in inner}
    assert references
    assert references <= {f"#/$defs/{name}" for name in schema["$defs"]}


def test_objects_are_closed_as_the_spec_is():
    open_ones = [
        path for path, s in schemas(json_schema()) if "properties" in s and s.get("additionalProperties") is not False
    ]
    assert open_ones == []


def test_keys_are_those_of_the_yaml():
    properties = json_schema()["properties"]
    assert "lambda" in properties
    assert "target_weight" not in properties


def test_shorthands_are_offered():
    offered = json_schema()["properties"]
    assert {"type": "string"} in offered["backbone"]["anyOf"]
    assert {"enum": ["sgd", "adam", "adamw"], "type": "string"} in offered["optimizer"]["anyOf"]


def test_schema_command_prints_it():
    result = CliRunner().invoke(app, ["schema"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json_schema()
