"""The version of this program."""

from __future__ import annotations


def own_version() -> str:
    """The version of the distribution `rlms`."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rlms")
    except PackageNotFoundError:
        return "not installed"
