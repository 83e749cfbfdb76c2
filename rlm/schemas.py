"""JSON schemas: what is wrong with one is seen before a model is asked, as far as it can be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlm.errors import ConfigError
from rlm.plain import a

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
# What these hold is applied to the very value that the schema around them is applied to.
_SCHEMAS = ("not", "if", "then", "else")
_LISTS = ("allOf", "anyOf", "oneOf")
_BY_NAME = ("dependentSchemas", "dependencies")


def validator(schema: dict[str, Any]) -> Any:
    """A validator of `jsonschema`. It follows references within the schema and to the drafts of JSON Schema; it loads none.

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
        specification: of the draft that the schema is written in.
    """

    def __init__(self, specification: Any) -> None:
        self._specification = specification
        self._open: set[int] = set()
        """Schemas, by identity, that are applied to one value: each because of the one before."""
        self._done: set[int] = set()
        self._pending: list[tuple[Any, Any]] = []

    def check(self, schema: Any) -> None:
        """
        Raises:
            ConfigError: a reference leads nowhere, or a value would be checked without end.
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
                "response_format refers to itself without end: what a value has to be is said by a $ref to the same place"
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
        except (
            Unresolvable,
            ValueError,
            TypeError,
        ) as error:  # the latter of a name where a list needs a number
            raise ConfigError(
                f"response_format has a $ref to {reference!r}, which is not in it; schemas elsewhere are not loaded"
            ) from error
        if not isinstance(found.contents, Mapping | bool):
            raise ConfigError(
                f"response_format has a $ref to {reference!r}, which is {a(found.contents)} and no schema"
            )
        return found.contents, found.resolver


def _applied(schema: Mapping[str, Any]) -> Iterator[Any]:
    for name in _SCHEMAS:
        if name in schema:
            yield schema[name]
    for name in _LISTS:
        yield from schema.get(name, ())
    for name in _BY_NAME:  # in older drafts also of lists of names
        yield from (inner for inner in schema.get(name, {}).values() if isinstance(inner, Mapping | bool))
