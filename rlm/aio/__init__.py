"""Helpers for asyncio that know no RLM."""
