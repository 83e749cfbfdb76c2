"""Records of a run: the event log, the run tree, the trajectory, and spans of OpenTelemetry."""

from rlm._redaction import protect
from rlm.logger.event_log import RLMLogger, read_log
from rlm.logger.run_tree import RunTree
from rlm.logger.trajectory import Trajectory

__all__ = ["RLMLogger", "RunTree", "Trajectory", "protect", "read_log"]
