"""Helpers for asyncio that know nothing of RLMs."""
