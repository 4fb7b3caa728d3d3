"""Recipes: YAML files, `base:` inheritance and `a.b=c` overrides, validated into frozen typed dataclasses.

A recipe is data only (safe YAML). Strings may name the recipe's own top-level texts as `${out}`; nothing else is
substituted. pydantic checks types and refuses unknown keys; this file turns what it finds into one clear line that
names the nearest valid key.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from mcjepa.data_prep.errors import nearest_name
from mcjepa.data_prep.storage import atomic_write
from mcjepa.pipeline.errors import UsageError

Config = TypeVar("Config")
UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")
PLACEHOLDER = re.compile(r"\$\{([^}]*)\}")


UNITS = {"_min": "minutes", "_s": "seconds"}
"""Ends of keys that are times, and what they count."""


class _Loader(yaml.SafeLoader):
    """Safe YAML without two traps: a key given twice is refused, which parsers otherwise drop in silence, and `20:00`
    is text, which YAML 1.1 takes for a number of base 60."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as PyYAML has it)
        first: [
            (
                tag,
                re.compile(rf"(?!.*:)(?:{regexp.pattern})", regexp.flags)
                if tag.endswith((":int", ":float"))
                else regexp,
            )
            for tag, regexp in resolvers
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        named = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in named]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise UsageError(f"line {node.start_mark.line + 1}: key {sorted(twice)[0]!r} is given twice; keep one")
        return super().construct_mapping(node, deep)


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of one that ships with the package (`quickstart`, `ablations/no-vc`).

    Raises:
        UsageError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    if re.fullmatch(r"[\w-]+(/[\w-]+)?(\.yaml)?", name):
        shipped = Path(str(resources.files("mcjepa.configs"))) / f"{name.removesuffix('.yaml')}.yaml"
        if shipped.is_file():
            return shipped
    raise UsageError(
        f"no recipe {name!r}, expected a YAML file or a shipped recipe: {nearest_name(name, shipped_recipes())}"
    )


def shipped_recipes() -> list[str]:
    """Names of the recipes that ship with the package, those in folders last."""
    folder = Path(str(resources.files("mcjepa.configs")))
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]
    names = [name for name in names if not name.startswith("site/")]  # where stages run, not what
    return sorted(names, key=lambda name: ("/" in name, name))


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe's content with its `base` recipe merged below it; a base is looked up beside the file first.

    Raises:
        UsageError: it is not a YAML mapping, or bases go round in a circle.
    """
    return _read_with_bases(path, ())


def _read_with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise UsageError(f"recipe {path}: its bases go round in a circle; remove one `base:`")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UsageError(
            f"recipe {path}, line {line}: byte 0x{error.object[error.start]:02x} is no UTF-8, expected a text in "
            "UTF-8; save it in that encoding"
        ) from error
    except yaml.YAMLError as error:
        raise UsageError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from error
    except UsageError as error:
        raise UsageError(f"recipe {path}, {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"recipe {path} holds {type(content).__name__}, expected a mapping of keys")
    base = content.pop("base", None)
    if base is None:
        return merge({}, content)
    beside = path.parent / str(base)
    parent = beside if beside.is_file() else find_recipe(str(base))
    return merge(_read_with_bases(parent, (*seen, path.resolve())), content)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`: mappings are merged key by key, anything else is replaced; so is a mapping under `key!`."""
    merged = dict(below)
    for key, value in above.items():
        replaces = isinstance(key, str) and key.endswith("!")
        name = key[:-1] if replaces else key
        old = {} if replaces or not isinstance(merged.get(name), dict) else merged[name]
        merged[name] = merge(old, value) if isinstance(value, dict) else value
    return merged


def override(key: str, value: Any) -> str:
    """A value as an override that gives exactly it, whatever letters it has.

    >>> override("out", "/data/a # b"), override("out", "s3://a/b"), override("name", "12"), override("prep.workers", 2)
    ('out="/data/a # b"', 'out=s3://a/b', 'name="12"', 'prep.workers=2')
    """
    if isinstance(value, str) and re.fullmatch(r"[\w./:@%+,=-]+", value) and _value(value) == value:
        return f"{key}={value}"
    return f"{key}={json.dumps(value, ensure_ascii=False)}"  # its escapes above U+FFFF are not YAML's


def _value(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lays `a.b=c` over a recipe; c is YAML, so `3`, `true`, `[1, 2]` and `null` have their types.

    Text that is not quoted is taken whole: a ` #` in it begins no comment.

    Raises:
        UsageError: an override has no `=` or its value is not YAML.
    """
    for word in overrides:
        dotted, equals, text = word.partition("=")
        if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", dotted):
            raise UsageError(f"override {word!r}: expected key=value, as in train.steps=100")
        try:
            value = _value(text)
        except yaml.YAMLError as error:
            raise UsageError(f"override {word!r}: the value is not YAML; quote it") from error
        except UsageError as error:
            raise UsageError(f"override {word!r}, {error}") from error
        if isinstance(value, str) and not text.lstrip().startswith(("'", '"', "!", "&", "|", ">")):
            value = text.strip()
        for key in reversed(dotted.split(".")):
            value = {key: value}
        content = merge(content, value)
    return content


def substitute(value: Any, texts: dict[str, str]) -> Any:
    """Replaces `${name}` in every string below `value` by the text of that name.

    Raises:
        UsageError: no text of that name.
    """

    def text_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in texts:
            raise UsageError(f"${{{name}}} in the recipe: expected one of {', '.join(sorted(texts))}")
        return texts[name]

    if isinstance(value, str):
        return PLACEHOLDER.sub(text_of, value)
    if isinstance(value, dict):
        return {key: substitute(item, texts) for key, item in value.items()}
    if isinstance(value, list):
        return [substitute(item, texts) for item in value]
    return value


def validate(config_type: type[Config], content: dict[str, Any], origin: str) -> Config:
    """Builds the typed configuration.

    Args:
        config_type: a frozen dataclass, with dataclasses nested in it.
        content: plain data.
        origin: what the data came from, for messages.

    Raises:
        UsageError: naming the first wrong key or value, and how many more there are.
    """
    rules = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    model = create_model("Recipe", __config__=rules, root=(config_type, ...))
    try:
        return model.model_validate({"root": content}).root  # type: ignore[attr-defined]
    except ValidationError as error:
        found = sorted(error.errors(), key=lambda finding: finding["type"] not in UNKNOWN_KEY)
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UsageError(f"{origin}: {_explain(dict(found[0]), config_type)}{more}") from error


def _explain(finding: dict[str, Any], config_type: type) -> str:
    place = [str(part) for part in finding["loc"][1:] if not str(part).startswith("function-")]
    dotted = ".".join(place)
    if finding["type"] in UNKNOWN_KEY:
        names = _names_beside(config_type, place)
        prefix = "".join(f"{part}." for part in place[:-1])
        return f"unknown key {dotted!r}: {nearest_name(place[-1], names, prefix)}"
    if finding["type"] in ("missing", "missing_argument"):
        return f"key {dotted!r} is missing; add it"
    message = str(finding["msg"]).removeprefix("Value error, ")
    if finding["type"] == "value_error":
        return f"{dotted}: {message}" if dotted else message
    unit = next((word for end, word in UNITS.items() if place and place[-1].endswith(end)), "")
    if unit and ":" in str(finding["input"]):
        return f"{dotted} is {finding['input']!r}, expected {unit} as one number"
    return f"{dotted} is {finding['input']!r}: {message[0].lower()}{message[1:]}"


def _names_beside(config_type: type, place: list[str]) -> list[str]:
    """Valid keys at the level of the last part of `place`, read off the JSON schema."""
    schema = json_schema(config_type)
    node: dict[str, Any] = schema
    for part in place[:-1]:
        node = _resolve(node, schema)
        if part.isdigit() and "prefixItems" not in node and "items" in node:
            node = node["items"]
        else:
            node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
    return sorted(_resolve(node, schema).get("properties", {}))


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


def write_plain(plain: dict[str, Any], path: Path) -> Path:
    """Writes a resolved recipe as a file that is one again; returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, yaml.safe_dump(plain, sort_keys=False).encode())
    return path


def to_plain(config: Any) -> Any:
    """Dataclasses as plain data (dicts, lists, scalars), ready for YAML or JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: to_plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_plain(value) for value in config]
    return config
