"""The input of a run, encoded once."""

from rlm.context.context import MARSHAL_VERSION, Context

__all__ = ["MARSHAL_VERSION", "Context"]
