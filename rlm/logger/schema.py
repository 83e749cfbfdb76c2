"""The JSON schema of the event log, made from the classes and docstrings of `rlm.events`.

`python -m rlm.logger.schema` writes it to `events.v2.schema.json` beside this file. Run it after each change of an event.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from rlm.events import EVENTS, Event
from rlm.logger.event_log import FORMAT_VERSION

SCHEMA_FILE = Path(__file__).with_name(f"events.v{FORMAT_VERSION}.schema.json")

_SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def log_schema() -> dict[str, Any]:
    """Returns the JSON schema (draft 2020-12) of one line of the log."""
    definitions: dict[str, Any] = {}
    for name, kind in EVENTS.items():
        definitions[name] = _event(name, kind, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"A line of an event log, version {FORMAT_VERSION}",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in EVENTS],
        "$defs": definitions,
    }


def field_docs(kind: type[Any]) -> dict[str, str]:
    """Returns the docstrings below the fields of a class and of its bases, by field."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not base.__module__.startswith("rlm."):
            continue
        body = ast.parse(inspect.getsource(base)).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            text = below.value if isinstance(below, ast.Expr) else None
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                texts[field.target.id] = inspect.cleandoc(text.value).replace("\n", " ")
    return texts


def _event(name: str, kind: type[Event], definitions: dict[str, Any]) -> dict[str, Any]:
    schema = _object(kind, definitions)
    head = {"v": {"const": FORMAT_VERSION}, "type": {"const": name}}
    schema["properties"] = {**head, **schema["properties"]}
    schema["required"] = [*head, *(field for field in schema["required"] if field != "message")]
    return schema


def _object(kind: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    hints, docs = get_type_hints(kind), field_docs(kind)
    names = sorted(hints) if is_typeddict(kind) else [field.name for field in fields(kind)]
    properties = {}
    for name in names:
        properties[name] = _type(hints[name], definitions)
        if name in docs:
            properties[name] = {**properties[name], "description": docs[name]}
    return {
        "description": inspect.cleandoc(kind.__doc__ or "").replace("\n", " "),
        "type": "object",
        "properties": properties,
        "required": sorted(kind.__required_keys__) if is_typeddict(kind) else names,
        "additionalProperties": False,
    }


def _type(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (types.UnionType, Union):
        return {"anyOf": [_type(arg, definitions) for arg in args]}
    if origin is list:
        return {"type": "array", "items": _type(args[0], definitions)}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _type(args[1], definitions)}
    if is_dataclass(hint) or is_typeddict(hint):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}
            definitions[hint.__name__] = _object(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    raise TypeError(f"the schema has no form for {hint!r}")


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(log_schema(), indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"{SCHEMA_FILE}\n")
