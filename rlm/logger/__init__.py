"""What is written down of a run, and shown of it."""

from rlm.logger.jsonl import RLMLogger, Trajectory

__all__ = ["RLMLogger", "Trajectory"]
