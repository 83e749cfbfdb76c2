"""Clients of model providers.

`make_client` turns `backend` and `backend_kwargs` into a `Client`. `register_backend` adds a provider of your own.
docs/providers.md lists the built-in providers.
"""

from __future__ import annotations

from rlm.clients.base import Client, ModelReply
from rlm.clients.prices import Price, Prices
from rlm.clients.registry import backends, make_client, register_backend

__all__ = ["Client", "ModelReply", "Price", "Prices", "backends", "make_client", "register_backend"]
