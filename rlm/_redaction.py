"""Takes secrets out of everything that is written down or shown.

`[redacted]` replaces, at any nesting:

1. the keys and secret headers of all clients of this process, and the values of environment variables whose names end in
   API_KEY, ACCESS_KEY, SECRET_KEY, PRIVATE_KEY, TOKEN, SECRET or PASSWORD: wherever they occur in a text, if they have 8
   characters or more;
2. every value under the name of a secret: authorization, auth, password, passphrase, secret, credentials, cookie, jwt, api
   key, access key, private key, token, in any spelling (`X-Api-Key`, `apiKey`, `access_token`). Counts of tokens
   (`max_tokens`) and marker tokens (`eos_token`) stay;
3. in texts, the word after `Bearer` or `Basic`, if it looks like a key: 16 characters or more, with a digit.
"""

from __future__ import annotations

import json
import os
import re
import threading
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any

REDACTED = "[redacted]"

_SHORTEST = 8
"""Characters of the shortest secret that is replaced: a shorter one could be an ordinary word."""
_VARIABLE = re.compile(
    r"(?:API_?KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY|TOKEN|SECRET|PASSWORD)\Z", re.IGNORECASE
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)(\s+)(?=[^\s\d]*\d)[\w.~+/=-]{16,}")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SECRET_WORDS = frozenset(
    [
        *("authorization", "auth", "bearer", "cookie", "cookies", "credential", "credentials", "jwt"),
        *("passphrase", "passwd", "password", "secret", "secrets"),
    ]
)
_SECRET_ENDS = ("apikey", "apikeys", "accesskey", "privatekey", "secretkey")
_MARKERS = frozenset(("bos", "cls", "eos", "mask", "pad", "sep", "special", "stop", "unk"))

_lock = threading.Lock()
_protected: weakref.WeakKeyDictionary[object, tuple[str, ...]] = weakref.WeakKeyDictionary()


def protect(owner: object, secrets: Iterable[str]) -> None:
    """Keeps secrets out of logs, metadata, spans and the console, from the next completion on and as long as `owner` lives.

    Args:
        owner: the object that the secrets belong to, such as a client. It is referred to weakly.
        secrets: its keys. Keys of fewer than 8 characters are ignored: they could be words.
    """
    with _lock:
        _protected[owner] = tuple(secrets)


def is_secret_name(name: str) -> bool:
    """Whether a value under this name is a secret."""
    return _is_secret_name(name) if len(name) <= 100 else False


@lru_cache(maxsize=4096)
def _is_secret_name(name: str) -> bool:
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words:
        return False
    if not _SECRET_WORDS.isdisjoint(words) or "".join(words).endswith(_SECRET_ENDS):
        return True
    return words[-1] == "token" and (len(words) == 1 or words[-2] not in _MARKERS)


def _may_have_bearer(text: str) -> bool:
    """Whether the slow search with `_BEARER` can find anything."""
    return "earer" in text or "asic" in text or "EARER" in text or "ASIC" in text


class Redactor:
    """Takes secrets out of texts and data. It knows the secrets that exist when it is made."""

    def __init__(self) -> None:
        with _lock:
            known = {secret for secrets in _protected.values() for secret in secrets}
        known.update(value for name, value in os.environ.items() if _VARIABLE.search(name))
        # Longer secrets first: a secret may be the beginning of another one.
        self._secrets = sorted((s for s in known if len(s) >= _SHORTEST), key=len, reverse=True)
        self._escaped = [json.dumps(secret)[1:-1] for secret in self._secrets]

    def text(self, text: str) -> str:
        """Returns the text without secrets."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, REDACTED)
        if _may_have_bearer(text):
            text = _BEARER.sub(rf"\1\2{REDACTED}", text)
        return text

    def may_be_in(self, line: str) -> bool:
        """Whether the texts in a line of JSON may hold a secret. Values under the name of a secret are not searched."""
        return any(secret in line for secret in self._escaped) or _may_have_bearer(line)

    def data(self, value: Any) -> Any:
        """Returns the value as plain JSON data, without secrets."""
        if isinstance(value, str):
            return self.text(value)
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            return {self.text(str(name)): self.field(str(name), item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.data(item) for item in value]
        return self.data(jsonable(value))

    def field(self, name: str, value: Any) -> Any:
        """Returns the value under a name as plain JSON data, without secrets."""
        if is_secret_name(name) and not (value is None or value == "" or isinstance(value, bool)):
            return REDACTED
        return self.data(value)


def jsonable(value: Any) -> Any:
    """The form in which a value that JSON does not know is written down: a dataclass as a dict, anything else as its repr."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    return repr(value)
