"""Recipes: YAML files, `base:` inheritance and `a.b=c` overrides.

A recipe is data only (safe YAML). Strings may name the recipe's own top-level texts as `${out}`; nothing else is
substituted.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from mcjepa.data_prep.errors import nearest_name
from mcjepa.data_prep.storage import atomic_write
from mcjepa.pipeline.errors import UsageError

PLACEHOLDER = re.compile(r"\$\{([^}]*)\}")


class _Loader(yaml.SafeLoader):
    """Safe YAML without three traps: a key given twice is refused, which parsers otherwise drop in silence; `20:00` is
    text, which YAML 1.1 takes for a number of base 60, and so is `010`, its number of base 8: ten where a number is
    meant, as YAML 1.2 has it."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as PyYAML has it)
        first: [
            (
                tag,
                re.compile(rf"(?!.*:)(?![-+]?0[0-9_]+$)(?:{regexp.pattern})", regexp.flags)
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
    try:
        if path.is_file():
            return path
        is_folder = path.is_dir()
    except OSError as error:
        raise UsageError(f"recipe {name[:200]!r}: {error.strerror}, expected a YAML file; correct the path") from error
    if re.fullmatch(r"[\w-]+(/[\w-]+)?(\.yaml)?", name):
        shipped = Path(str(resources.files("mcjepa.configs"))) / f"{name.removesuffix('.yaml')}.yaml"
        if shipped.is_file():
            return shipped
    if is_folder and name:
        inside = sorted(file.name for file in path.glob("*.yaml"))
        advice = f"name one in it, such as {path / inside[-1]}" if inside else "name one, or a shipped recipe"
        raise UsageError(f"recipe {name} is a folder, expected a YAML file; {advice}")
    if "=" in name:
        raise UsageError(f"{name!r} stands where the recipe is expected, key=value after it; name the recipe first")
    near = nearest_name(name, shipped_recipes())
    if "did you mean" not in near:
        top = ", ".join(known for known in shipped_recipes() if "/" not in known)
        near = f"expected one of {top}, ablations/…, study/…"
    if len(path.parts) > 2 or (path.suffix and "did you mean" not in near):
        raise UsageError(f"no file {name}, expected a YAML file, or the name of a shipped recipe; correct the path")
    raise UsageError(f"no recipe {name!r}, expected a YAML file or a shipped recipe: {near}")


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
    except OSError as error:
        raise UsageError(f"recipe {path}: {error.strerror}, expected a file to read; check its permissions") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UsageError(
            f"recipe {path}, line {line}: byte 0x{error.object[error.start]:02x} is no UTF-8, expected a text in "
            "UTF-8; save it in that encoding"
        ) from error
    except yaml.YAMLError as error:
        raise UsageError(f"recipe {path} is not valid YAML{_where_wrong(error)}") from error
    except UsageError as error:
        raise UsageError(f"recipe {path}, {error}") from error
    if not isinstance(content, dict):
        held = {"NoneType": "nothing", "str": "a text"}.get(kind := type(content).__name__, f"a {kind}")
        raise UsageError(f"recipe {path} holds {held}, expected a mapping of keys; write `key: value` lines")
    try:
        json.dumps(content, default=str, skipkeys=True)
    except ValueError as error:
        raise UsageError(f"recipe {path}: an alias names what it is in, expected no circle; write it out") from error
    base = content.pop("base", None)
    if base is None:
        return merge({}, content)
    return merge(_read_with_bases(_find_base(base, path), (*seen, path.resolve())), content)


def _find_base(base: Any, path: Path) -> Path:
    beside = path.parent / str(base)
    if beside.is_file():
        return beside
    try:
        return find_recipe(str(base))
    except UsageError as error:
        raise UsageError(f"recipe {path}, base: {error}") from error


def _where_wrong(error: yaml.YAMLError) -> str:
    """Line and problem of an error of YAML, without what PyYAML calls the text."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f": {' '.join(str(error).split())}"
    advice = "; indent with blanks" if "'\\t'" in str(error.problem) else "; correct it"
    begun = f" ({error.context} from line {error.context_mark.line + 1} on)" if error.context_mark else ""
    return f", line {error.problem_mark.line + 1}: {error.problem}{begun}{advice}"


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
