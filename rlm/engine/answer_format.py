"""The form of an answer: `response_format`."""

from __future__ import annotations

import ast
import itertools
import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rlm._wording import a
from rlm.errors import ConfigError

_log = logging.getLogger(__name__)

_FENCE = re.compile(r"\A\s*```[A-Za-z0-9_-]*[ \t]*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
_MOST_PROBLEMS = 5
"""Problems of an answer that one note to the model lists."""

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")

# Keywords whose schemas apply to the same value as the schema that holds them: one schema, a list, schemas by name.
_SAME_VALUE = ("not", "if", "then", "else")
_SAME_VALUE_LISTS = ("allOf", "anyOf", "oneOf")
_SAME_VALUE_BY_NAME = ("dependentSchemas", "dependencies")


class AnswerFormat:
    """The form that an answer must have.

    Args:
        response_format: a pydantic model class, or another type that pydantic can validate, such as `list[int]`; or a JSON
            schema as a dict, whose references stay within the schema. It may be wrapped as OpenAI's API takes it:
            `{"type": "json_schema", "json_schema": {"schema": ...}}`.

    Raises:
        ConfigError: `response_format` is neither; its schema is not valid or is no JSON; or the library for schemas is not
            installed.
    """

    def __init__(self, response_format: Any) -> None:
        self._adapter: Any = None
        self._validator: Any = None
        if isinstance(response_format, Mapping):
            self.schema = _schema_of(response_format)
            self._text = _text_of(self.schema)
            self._validator = _schema_validator(self.schema)
        else:
            self._adapter, self.schema = _adapter(response_format)
            self._text = _text_of(self.schema)

    @property
    def instructions(self) -> str:
        """The model's instructions for its answer."""
        return (
            'The answer has a form: answer["content"] must be JSON text that is valid for this JSON schema:\n'
            f"{self._text}"
        )

    def parse(self, answer: str) -> tuple[Any, str | None]:
        """Reads an answer and checks it.

        Args:
            answer: JSON, which may stand within a fence, or the repr of plain Python values.

        Returns:
            The object (an instance of the pydantic model, or plain data for a schema) and None; or None and the problem.
        """
        try:
            value = _read(answer)
        except ValueError as error:
            return None, f"it is not JSON: {error}"
        try:
            return self._check(value)
        except Exception as error:  # a validator of the caller raised, or the value is nested too deep
            _log.debug("an answer could not be checked", exc_info=error)
            return None, f"the check of it failed: {type(error).__name__}: {str(error)[:300]}"

    def _check(self, value: Any) -> tuple[Any, str | None]:
        if self._adapter is not None:
            return self._build(value)
        errors = itertools.islice(self._validator.iter_errors(value), _MOST_PROBLEMS)
        problems = [f"{problem.json_path}: {problem.message[:300]}" for problem in errors]
        return (None, "; ".join(problems)) if problems else (value, None)

    def _build(self, value: Any) -> tuple[Any, str | None]:
        from pydantic import ValidationError

        try:
            # As JSON: in that mode pydantic also reads dates, tuples and enums, for which JSON has no type.
            return self._adapter.validate_json(json.dumps(value)), None
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, item['loc'])) or 'the answer'}: {item['msg']}"
                for item in error.errors(include_url=False, include_context=False, include_input=False)
            ]
            return None, "; ".join(problems[:_MOST_PROBLEMS])


def _read(text: str) -> Any:
    fenced = _FENCE.match(text)
    if fenced is not None:
        text = fenced[1]
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)  # `loads` accepts NaN and Infinity, which are no JSON
    except (ValueError, RecursionError) as error:
        try:
            # The text of `answer["content"] = {...}` is the repr of the dict.
            value = ast.literal_eval(text.strip())
            json.dumps(value, allow_nan=False)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ValueError(str(error)) from None
    return value


def _schema_of(given: Mapping[str, Any]) -> dict[str, Any]:
    if given.get("type") == "json_schema":
        wrapped = given.get("json_schema")
        inner = wrapped.get("schema") if isinstance(wrapped, Mapping) else None
        if not isinstance(inner, Mapping):
            raise ConfigError("response_format has the type json_schema, but no json_schema.schema")
        return dict(inner)
    if given.get("type") in ("json_object", "text"):
        raise ConfigError(
            f"response_format={{'type': {given['type']!r}}} does not say the form; give a JSON schema"
        )
    return dict(given)


def _text_of(schema: dict[str, Any]) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the JSON schema of response_format is no JSON: {error}") from None


def _adapter(kind: Any) -> tuple[Any, dict[str, Any]]:
    try:
        from pydantic import TypeAdapter
        from pydantic.errors import PydanticUserError
    except ImportError as error:
        raise ConfigError(
            "response_format takes a JSON schema as a dict, or with pydantic (pip install 'rlms[structured]') a model class"
        ) from error
    if isinstance(kind, str | int | float | bytes | list | tuple | None):
        raise ConfigError(
            f"response_format must be a pydantic model class or a JSON schema as a dict, not {kind!r}"
        )
    try:
        adapter = TypeAdapter(kind)
        return adapter, adapter.json_schema()
    except PydanticUserError as error:
        raise ConfigError(f"response_format={kind!r} has no JSON schema: {error.message[:300]}") from None
    except Exception as error:  # code of the caller's types runs here
        raise ConfigError(
            f"response_format={kind!r} has no JSON schema: {type(error).__name__}: {str(error)[:300]}"
        ) from error


def _schema_validator(schema: dict[str, Any]) -> Any:
    """A validator of `jsonschema`. It follows references within the schema and to the drafts of JSON Schema. It loads no
    other schema.

    Raises:
        ConfigError: the schema is not valid, a reference in it leads nowhere or back to itself, or jsonschema is not
            installed.
    """
    try:
        from jsonschema import SchemaError
        from jsonschema.validators import Draft202012Validator, validator_for
        from referencing import Registry
        from referencing.jsonschema import DRAFT202012, specification_with
    except ImportError as error:
        raise ConfigError(
            "response_format with a JSON schema needs jsonschema: pip install 'rlms[structured]'"
        ) from error
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
        specification = specification_with(kind.META_SCHEMA.get("$schema", ""), default=DRAFT202012)
        _References(specification).check(schema)
    except ConfigError:
        raise
    except SchemaError as error:
        raise ConfigError(f"response_format is not a valid JSON schema: {error.message[:300]}") from None
    except Exception as error:
        raise ConfigError(
            f"response_format is not a valid JSON schema: {type(error).__name__}: {error}"
        ) from error
    return kind(schema, registry=Registry())


class _References:
    """Follows all references of a schema.

    Args:
        specification: the draft of JSON Schema that the schema is written in.
    """

    def __init__(self, specification: Any) -> None:
        self._specification = specification
        self._open: set[int] = set()
        """Ids of the schemas on the current path: each applies the next one to the same value."""
        self._done: set[int] = set()
        self._pending: list[tuple[Any, Any]] = []

    def check(self, schema: Any) -> None:
        """Checks every reference.

        Raises:
            ConfigError: a reference leads nowhere, or the check of a value would never end.
        """
        from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

        resource = self._specification.create_resource(schema)
        self._pending.append((schema, REGISTRY.resolver_with_root(resource)))
        while self._pending:
            self._visit(*self._pending.pop())

    def _visit(self, schema: Any, resolver: Any) -> None:
        if isinstance(schema, bool) or id(schema) in self._done:
            return
        if id(schema) in self._open:
            raise ConfigError(
                "response_format refers to itself without end: a $ref leads back to the same schema for the same value"
            )
        self._open.add(id(schema))
        for name in _REFERENCES:
            if isinstance(schema.get(name), str):
                self._visit(*self._target(schema[name], resolver))
        for inner in _applied(schema):
            self._visit(inner, self._inside(inner, resolver))
        self._open.remove(id(schema))
        self._done.add(id(schema))
        for inner in self._specification.subresources_of(schema):
            self._pending.append((inner, self._inside(inner, resolver)))

    def _inside(self, schema: Any, resolver: Any) -> Any:
        return resolver.in_subresource(self._specification.create_resource(schema))

    def _target(self, reference: str, resolver: Any) -> tuple[Any, Any]:
        from referencing.exceptions import Unresolvable

        try:
            found = resolver.lookup(reference)
        # TypeError: a name where a list needs a number
        except (Unresolvable, ValueError, TypeError) as error:
            raise ConfigError(
                f"response_format has a $ref to {reference!r}, which is not in it; schemas elsewhere are not loaded"
            ) from error
        if not isinstance(found.contents, Mapping | bool):
            raise ConfigError(
                f"response_format has a $ref to {reference!r}, which is {a(found.contents)} and no schema"
            )
        return found.contents, found.resolver


def _applied(schema: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas inside a schema that apply to the same value."""
    for name in _SAME_VALUE:
        if name in schema:
            yield schema[name]
    for name in _SAME_VALUE_LISTS:
        yield from schema.get(name, ())
    for name in _SAME_VALUE_BY_NAME:  # older drafts also have lists of names here
        yield from (inner for inner in schema.get(name, {}).values() if isinstance(inner, Mapping | bool))
