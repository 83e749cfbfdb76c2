"""What is written down of a run, and shown of it."""

from rlm.logger.log import RLMLogger, read_log
from rlm.logger.redaction import protect
from rlm.logger.trajectory import Trajectory

__all__ = ["RLMLogger", "Trajectory", "protect", "read_log"]
