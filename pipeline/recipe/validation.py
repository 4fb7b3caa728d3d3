"""Plain data to frozen typed dataclasses.

pydantic checks types and refuses unknown keys; this file turns what it finds into one clear line that names the nearest
valid key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from mcjepa.data_prep.errors import nearest_name
from mcjepa.pipeline.errors import UsageError

Config = TypeVar("Config")
UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")
UNITS = {"_min": "minutes", "_s": "seconds"}
"""Ends of keys that are times, and what they count."""
EXPECTED = {
    "tuple_type": "a list, as in [1, 2]",
    "list_type": "a list, as in [1, 2]",
    "dict_type": "a mapping of keys",
    "mapping_type": "a mapping of keys",
    "dataclass_type": "a mapping of keys",
    "string_type": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}
"""What pydantic's findings expect, in the words of a recipe."""
MOST_ADVISED = 3


def validate(config_type: type[Config], content: dict[str, Any], origin: str) -> Config:
    """Builds the typed configuration.

    Args:
        config_type: a frozen dataclass, with dataclasses nested in it.
        content: plain data.
        origin: what the data came from, for messages.

    Raises:
        UsageError: naming the first wrong key or value, and how many more there are.
    """
    strict = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    model = create_model("Recipe", __config__=strict, root=(config_type, ...))
    try:
        config: Config = model.model_validate({"root": content}).root  # type: ignore[attr-defined]
    except ValidationError as error:
        found = sorted(error.errors(), key=lambda finding: finding["type"] not in UNKNOWN_KEY)
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UsageError(f"{origin}: {_explain(dict(found[0]), config_type)}{more}") from error
    if wrong := next(_truths_for_numbers(content, config), None):
        key, value = wrong
        raise UsageError(f"{origin}: {key} is {value}, expected a number; write it in digits")
    return config


def _truths_for_numbers(content: Any, config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Keys with `true` or `false` where a number is meant: pydantic reads them as 1 and 0."""
    if isinstance(content, bool):
        if type(config) in (int, float):
            yield key, _as_yaml(content)
    elif isinstance(content, Mapping):
        for name, value in content.items():
            inner = config.get(name) if isinstance(config, Mapping) else getattr(config, str(name), None)
            yield from _truths_for_numbers(value, inner, f"{key}.{name}" if key else str(name))
    elif isinstance(content, (list, tuple)) and isinstance(config, (list, tuple)):
        for place, (value, inner) in enumerate(zip(content, config, strict=False)):
            yield from _truths_for_numbers(value, inner, f"{key}.{place}")


def _explain(finding: dict[str, Any], config_type: type) -> str:
    place = [str(part) for part in finding["loc"][1:] if not str(part).startswith("function-")]
    dotted = ".".join(place)
    if finding["type"] in UNKNOWN_KEY:
        names = _names_beside(config_type, place)
        prefix = "".join(f"{part}." for part in place[:-1])
        if deeper := _deeper(config_type, place):
            return f"unknown key {dotted!r}: did you mean {' or '.join(map(repr, deeper))}?"
        return f"unknown key {dotted!r}: {nearest_name(place[-1], names, prefix)}"
    if finding["type"] in ("missing", "missing_argument"):
        return f"key {dotted!r} is missing; add it"
    if finding["type"] == "invalid_key":
        return f"key {_as_yaml(finding['input'])} is no text, expected the name of a setting; quote it, or remove it"
    message = str(finding["msg"]).removeprefix("Value error, ")
    if finding["type"] == "value_error":
        return f"{dotted}: {message}" if dotted else message
    unit = next((word for end, word in UNITS.items() if place and place[-1].endswith(end)), "")
    if unit and ":" in str(finding["input"]):
        return f"{dotted} is {finding['input']!r}, expected {unit} as one number"
    found, expected = finding["input"], EXPECTED.get(finding["type"], message.removeprefix("Input should be "))
    if finding["type"] == "string_type" and isinstance(found, (bool, int, float)):
        expected += "; quote it"
    if finding["type"] == "tuple_type" and isinstance(found, Mapping) and all(str(key).isdigit() for key in found):
        expected += "; its items have no keys of their own, write the whole list"
    return f"{dotted} is {_as_yaml(found)}, expected {expected}"


def _as_yaml(value: Any) -> str:
    """A value as messages show it: what Python calls None, True and False by the names that a recipe has for them."""
    if value is None:
        return "empty (null)"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _names_beside(config_type: type, place: list[str]) -> list[str]:
    """Valid keys at the level of the last part of `place`, read off the JSON schema."""
    schema = json_schema(config_type)
    return sorted(_node_above(schema, place).get("properties", {}))


def _deeper(config_type: type, place: list[str]) -> list[str]:
    """Keys further below the level of the last part of `place` that are called as it is, else those that end so
    (`lr`), of the least depth, in whole; some of them where they are many."""
    schema, name = json_schema(config_type), place[-1]
    level = [(tuple(place[:-1]), _node_above(schema, place))]
    while level:
        keys = [
            ((*above, key), _resolve(item, schema))
            for above, node in level
            for key, item in node.get("properties", {}).items()
        ]
        fitting = [parts for parts, _ in keys if parts[-1] == name or parts[-1].endswith(f"_{name}")]
        if fitting and len(level[0][0]) >= len(place):
            exact = [parts for parts in fitting if parts[-1] == name]
            return [".".join(parts) for parts in exact or fitting][:MOST_ADVISED]
        level = keys
    return []


def _node_above(schema: dict[str, Any], place: list[str]) -> dict[str, Any]:
    """The schema's node that the last part of `place` is looked for in."""
    node: dict[str, Any] = schema
    for part in place[:-1]:
        node = _resolve(node, schema)
        if part.isdigit() and "prefixItems" not in node and "items" in node:
            node = node["items"]
        else:
            node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
    return _resolve(node, schema)


def _resolve(node: Any, schema: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(node, dict):
        return {}
    for choice in node.get("anyOf", []):
        if choice.get("type") != "null":
            return _resolve(choice, schema)
    if "$ref" in node:
        return _resolve(schema["$defs"][node["$ref"].rsplit("/", 1)[1]], schema)
    return node


def json_schema(config_type: type) -> dict[str, Any]:
    """JSON schema of a configuration, each field with its documentation string as `description`."""
    model = create_model(
        "Recipe",
        __config__=ConfigDict(extra="forbid", use_attribute_docstrings=True),
        root=(config_type, ...),
    )
    schema = TypeAdapter(model).json_schema()
    target: dict[str, Any] = schema["$defs"][config_type.__name__]
    return {**target, "$defs": schema["$defs"]}
