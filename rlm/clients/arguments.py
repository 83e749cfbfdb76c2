"""Checks of the arguments that clients share."""

from __future__ import annotations

import os
import string
from collections.abc import Mapping
from typing import TypeGuard

from rlm.errors import ConfigError

_SECRET_LENGTH = 8  # characters; shorter header values are not taken for secrets
_HEADER_CHARACTERS = set(string.ascii_letters + string.digits + string.punctuation + " ")
_NAME_CHARACTERS = set(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~")


def is_str(value: object) -> TypeGuard[str]:
    """Whether the value is a str that is not empty."""
    return isinstance(value, str) and bool(value)


def checked_url(base_url: str) -> str:
    """The base URL without a final slash or `/chat/completions`.

    Raises:
        ConfigError: the URL cannot be used.
    """
    from yarl import URL

    if not is_str(base_url):
        raise ConfigError("base_url is missing: the server's URL, for instance http://127.0.0.1:8000/v1")
    try:
        url = URL(base_url.strip())
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("it must start with http:// or https:// and a host")
        if url.user is not None or url.password is not None:
            raise ValueError("give the key as api_key, not in the URL")
        if url.query_string or url.fragment:
            raise ValueError("it must not have a query or a fragment")
        url.origin()
    except ValueError as exc:
        # The message does not show the URL: it may hold a password.
        raise ConfigError(f"base_url is not a usable URL: {exc}") from None
    return str(url).rstrip("/").removesuffix("/chat/completions")


def checked_key(api_key: object) -> str:
    """The key without white space around it.

    Raises:
        ConfigError: the key cannot be sent in a header.
    """
    key = api_key.strip() if isinstance(api_key, str) else ""
    if not key or not set(key) <= _HEADER_CHARACTERS:
        raise ConfigError("api_key must be a str of printable ASCII characters")
    return key


def key_or_environment(api_key: str | None, variable: str, backend: str, hint: str = "") -> str:
    """The given key, or else the key in the environment.

    Args:
        variable: the environment variable.
        backend: the backend's name, for the message.
        hint: more advice for the message.

    Raises:
        ConfigError: there is neither.
    """
    key = api_key or os.environ.get(variable)
    if not key:
        raise ConfigError(
            f"backend {backend!r} needs a key: give api_key in backend_kwargs or set {variable}{hint}"
        )
    return key


def headers_of(
    api_key: str | None, extra: Mapping[str, str] | None, key_header: str = "Authorization"
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The headers of every request, and the secrets among their values, longest first.

    Args:
        api_key: the key; None: no key is sent.
        extra: headers of the caller. They take precedence over the client's own.
        key_header: name of the header for the key. In "Authorization" the key is a bearer token.

    Raises:
        ConfigError: a header cannot be sent.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "rlms"}
    secrets: list[str] = []
    if api_key is not None:
        api_key = checked_key(api_key)
        headers[key_header] = f"Bearer {api_key}" if key_header == "Authorization" else api_key
        secrets.append(api_key)
    for name, value in (extra or {}).items():
        if not is_str(name) or not is_str(value):
            raise ConfigError("default_headers must map str to str")
        if not set(name) <= _NAME_CHARACTERS or not set(value) <= _HEADER_CHARACTERS:
            raise ConfigError(f"default_headers: {name!r} or its value cannot be sent in a header")
        for ours in [known for known in headers if known.lower() == name.lower()]:
            del headers[ours]
        headers[name] = value
        if len(value) >= _SECRET_LENGTH:
            secrets.append(value)
    return headers, tuple(sorted(secrets, key=len, reverse=True))
