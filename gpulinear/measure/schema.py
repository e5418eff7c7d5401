"""Judges a value by a JSON schema, for the keywords that record.schema.json uses.

The jsonschema package is the field's standard, and the tests hold this file's verdicts against it. It is not used here
because the machine with the GPU is often one on which nothing can be installed, and no row may be written unjudged.
Source: JSON Schema draft 2020-12, core §10-11 and validation §6.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]


def _number(value: Any) -> bool:
    """JSON has no NaN and no infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "number": _number,
    "integer": lambda value: _number(value) and value == int(value),
}


def _equal(value: Any, wanted: Any) -> bool:
    """Python's True is 1; JSON's is not."""
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


# Keyword -> whether a value obeys it. As the standard has it, a rule for numbers says nothing of a text, and so on.
RULES: dict[str, Callable[[Any, Any], bool]] = {
    "type": lambda value, wanted: TYPES[wanted](value),
    "const": _equal,
    "enum": lambda value, wanted: any(_equal(value, one) for one in wanted),
    "pattern": lambda value, wanted: not isinstance(value, str) or re.search(wanted, value) is not None,
    "minimum": lambda value, wanted: not _number(value) or value >= wanted,
    "maximum": lambda value, wanted: not _number(value) or value <= wanted,
    "exclusiveMinimum": lambda value, wanted: not _number(value) or value > wanted,
}
APPLICATORS = {
    "$ref", "allOf", "anyOf", "if", "then", "else", "required", "properties", "additionalProperties",
    "unevaluatedProperties",
}  # fmt: skip
NOTES = {"$schema", "$comment", "$defs", "title", "description"}


def _target(reference: str, root: Schema) -> Schema:
    target: Schema = root["$defs"][reference.removeprefix("#/$defs/")]
    return target


def _known(schema: Schema, root: Schema) -> set[str]:
    """Names of the properties that a schema and what it includes speak of."""
    included = [*schema.get("allOf", ()), *([_target(schema["$ref"], root)] if "$ref" in schema else [])]
    return set(schema.get("properties", ())).union(*(_known(part, root) for part in included))


def violations(value: Any, schema: Schema | bool, root: Schema, where: str = "") -> Iterator[str]:
    """What is wrong with a value, a sentence each; nothing for a valid one.

    Args:
        schema: the schema to obey; ``False`` allows nothing. root: the document whose ``$defs`` it refers to.
        where: the field that the value is, for the sentences.
    """
    name = where or "the row"
    if isinstance(schema, bool):
        if not schema:
            yield f"{name} is not allowed here, got {value!r}"
        return
    for keyword, obeys in RULES.items():
        if keyword in schema and not obeys(value, schema[keyword]):
            yield f"{name} must be of {keyword} {schema[keyword]!r}, got {value!r}"
    if "$ref" in schema:
        yield from violations(value, _target(schema["$ref"], root), root, where)
    for part in schema.get("allOf", ()):
        yield from violations(value, part, root, where)
    if "anyOf" in schema:
        alternatives = [list(violations(value, part, root, where)) for part in schema["anyOf"]]
        if all(alternatives):
            yield " or ".join(found[0] for found in alternatives)
    if "if" in schema:
        branch = "else" if any(violations(value, schema["if"], root, where)) else "then"
        yield from violations(value, schema.get(branch, True), root, where)
    if isinstance(value, dict):
        yield from _of_object(value, schema, root, where)


def _of_object(value: dict[str, Any], schema: Schema, root: Schema, where: str) -> Iterator[str]:
    """The keywords that speak of an object's fields."""
    name = where or "the row"
    for field in schema.get("required", ()):
        if field not in value:
            yield f"{name} lacks {field}"
    for field, rule in schema.get("properties", {}).items():
        if field in value:
            yield from violations(value[field], rule, root, f"{where}.{field}" if where else field)
    if schema.get("additionalProperties", True) is False or schema.get("unevaluatedProperties", True) is False:
        for field in value:
            if field not in _known(schema, root):
                yield f"{name} has the unknown field {field!r}"
