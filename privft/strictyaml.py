"""YAML files that people write, read strictly: run configs, policies, and what overlays them.

A slip in such a file must stop the run instead of changing its meaning, so this is YAML 1.2's
core schema with everything left out that surprises:

- `yes`, `no`, `on`, `off` and dates stay text (YAML 1.1 turns a label `no` into False);
- `5e-3` is a number (PyYAML by itself reads it as text); `.inf` and `.nan` are not;
- a key that appears twice, an alias, a tag, a second document, a key that is not text: errors;
- files over 1 MiB are refused.

`validate` then checks the values against a pydantic model and answers with one line that names the
file, the line and the key; for an unknown key its hint names the nearest known one, or the section
that the key belongs to.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from privft.errors import ConfigError

MAX_BYTES = 1 << 20
_STR = "tag:yaml.org,2002:str"
_SCALARS = {
    "tag:yaml.org,2002:null": (re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (
        re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"),
        list("tTfF"),
    ),
    "tag:yaml.org,2002:int": (re.compile(r"[-+]?[0-9]+$"), list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
        list("-+.0123456789"),
    ),
}

ModelT = TypeVar("ModelT", bound=BaseModel)
Where = tuple[str | int, ...]


class Strict(BaseModel):
    """A frozen value that knows all its keys, converts nothing and has no infinities."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        defer_build=True,  # most commands never validate one: 0.1 s of each start
    )


@dataclass(frozen=True, kw_only=True)
class Document:
    """A parsed file: plain JSON values, and the line of each key or item (the root is `()`)."""

    source: str
    data: dict[str, Any]
    lines: Mapping[Where, int] = field(repr=False)


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the core schema's scalars; only its `compose` half is used."""

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise _refusal("an anchor or alias", event.start_mark.line)
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, _pattern, _first)


def _refusal(what: str, line: int) -> yaml.YAMLError:
    mark = yaml.Mark("", 0, line, 0, "", 0)
    return yaml.MarkedYAMLError(problem=f"{what} is not allowed here", problem_mark=mark)


def read_path(path: Path) -> Document:
    """`read_text` on a file; raises `ConfigError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {(error.strerror or 'error').lower()}") from error
    try:
        return read_text(content.decode("utf-8"), source=path.name)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name}: not UTF-8 at byte {error.start}") from error


def read_text(text: str, *, source: str) -> Document:
    """Parse one YAML mapping; raises `ConfigError` that names `source` and the line."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ConfigError(f"{source}: expected at most {MAX_BYTES} bytes")
    lines: dict[Where, int] = {}
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data = None if node is None else _plain(node, (), lines)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: {error.problem or 'not YAML'}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: it holds a character that YAML forbids") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deeply") from error
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: expected keys and values, got {_kind(data)}")
    return Document(source=source, data=data, lines=lines)


def _kind(value: Any) -> str:
    return {type(None): "nothing", list: "a list", str: "text"}.get(type(value), "a number")


def _plain(node: Node, where: Where, lines: dict[Where, int]) -> Any:
    lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, ScalarNode):
        return _scalar(node)
    if isinstance(node, SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return [_plain(item, (*where, i), lines) for i, item in enumerate(node.value)]
    if not isinstance(node, MappingNode) or node.tag != "tag:yaml.org,2002:map":
        raise _refusal(f"the tag {node.tag}", node.start_mark.line)
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line
        if not isinstance(key_node, ScalarNode) or key_node.tag != _STR:
            raise _refusal("a key that is not text", line)
        key = key_node.value
        if key in mapping:
            raise _refusal(f"a second {key!r} in one mapping", line)
        lines[(*where, key)] = line + 1
        mapping[key] = _plain(value_node, (*where, key), lines)
    return mapping


def _scalar(node: ScalarNode) -> Any:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    text = node.value
    if kind not in ("str", "null", "bool", "int", "float"):
        raise _refusal(f"the tag {node.tag}", node.start_mark.line)
    if kind == "str":
        return text
    if not _SCALARS[node.tag][0].match(text):
        raise _refusal(f"{text!r} tagged as {kind}", node.start_mark.line)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int" and len(text) > 18:
        raise _refusal("a whole number of more than 18 digits", node.start_mark.line)
    number = int(text) if kind == "int" else float(text)
    if number in (float("inf"), float("-inf")):
        raise _refusal(f"the number {text[:20]}", node.start_mark.line)
    return number


def validate(
    model: type[ModelT], document: Document, *, instead: Mapping[str, str] | None = None
) -> ModelT:
    """`document` as a `model`.

    instead: keys known from elsewhere that mean nothing here, each with what to write instead.
    Errors: `ConfigError` for the first problem in the file, saying how many more there are.
    """
    try:
        return model.model_validate_json(json.dumps(document.data))
    except ValidationError as error:
        problems = error.errors(include_url=False)
    # What is there and wrong comes before what is missing: a slip in a key is often both.
    first = min(
        problems, key=lambda each: (each["type"] == "missing", _line(document, each["loc"]))
    )
    # A union of types reports one problem for each of them, all in the same place.
    place = _trim(document, first["loc"])
    alike = [each for each in problems if _trim(document, each["loc"]) == place]
    message, hint = _explain(model, document, first, alike, instead or {})
    count = len({_trim(document, problem["loc"]) for problem in problems}) - 1
    more = f" (and {count} more)" if count else ""
    at = f"{document.source} line {_line(document, first['loc'])}"
    raise ConfigError(f"{at}: {message}{more}", hint=hint)


def _trim(document: Document, loc: Where) -> Where:
    """The longest part of a pydantic location that the document has (it adds union tags)."""
    kept: list[str | int] = []
    for part in loc:
        if (*kept, part) in document.lines:
            kept.append(part)
    return tuple(kept)


def _line(document: Document, loc: Where) -> int:
    return document.lines.get(_trim(document, loc), 1)


def _explain(
    model: type[BaseModel],
    document: Document,
    problem: Any,
    alike: list[Any],
    instead: Mapping[str, str],
) -> tuple[str, str | None]:
    where = _trim(document, problem["loc"])
    name = ".".join(str(part) for part in where)
    if problem["type"] == "extra_forbidden":
        return _unknown(model, where, instead)
    if problem["type"] == "missing":
        section = f" in {name}" if name else ""
        return f"expected the key {str(problem['loc'][-1])!r}{section}", None
    if problem["type"] in ("value_error", "assertion_error"):
        text = str(problem["ctx"]["error"])
        return (f"{name}: {text}" if name else text), None
    said = dict.fromkeys(each["msg"].split(" should ", 1)[-1] for each in alike)
    text = "must " + " or ".join(said)
    shown = json.dumps(problem["input"])
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"{name} {text}, got {shown}", None


def _unknown(
    model: type[BaseModel], where: Where, instead: Mapping[str, str]
) -> tuple[str, str | None]:
    key, section = str(where[-1]), where[:-1]
    known = _keys(model, section)
    inside = f" in {'.'.join(str(part) for part in section)}" if section else ""
    message = f"unknown key {key!r}{inside}"
    if key in instead:
        return message, instead[key]
    homes = [name for name, keys in _sections(model).items() if key in keys]
    if homes:
        place = f"under {homes[0]}:" if homes[0] else "at the top level"
        return message, f"{key!r} belongs {place}"
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if close:
        return message, f"did you mean {close[0]!r}?"
    elsewhere = {each: name for name, keys in _sections(model).items() for each in keys}
    close = difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.75)
    if close:
        return message, f"did you mean {close[0]!r} under {elsewhere[close[0]] or 'the top level'}?"
    return message, f"known keys: {', '.join(sorted(known))}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        found = (_model_in(part) for part in typing.get_args(annotation))
        return next((each for each in found if each is not None), None)
    return None


def _keys(model: type[BaseModel], section: Where) -> list[str]:
    here: type[BaseModel] | None = model
    for part in section:
        info = here.model_fields.get(str(part)) if here else None
        here = _model_in(info.annotation) if info else None
    return list(here.model_fields) if here else []


def _sections(model: type[BaseModel]) -> dict[str, list[str]]:
    """Keys by section, `""` for the top level."""
    found = {"": list(model.model_fields)}
    for name, info in model.model_fields.items():
        inner = _model_in(info.annotation)
        if inner is not None:
            found[name] = list(inner.model_fields)
    return found
