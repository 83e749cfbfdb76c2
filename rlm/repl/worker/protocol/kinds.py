"""The kinds of frames and messages, named once for each stream. A kind is one byte, and no byte stands for two kinds.

The sequence of an interrupt, for a time limit or for a caller that stops the cell. The modules are `rlm.repl.session`,
`control.monitor` with `control.fork_server`, and `process.channel` with `process.interrupts`.

    host                      supervisor and fork server        worker
    ----                      --------------------------        ------
    VOID -----------------------------------------------------> from now on queries and calls of tools raise
                                                                KeyboardInterrupt in place of waiting for a reply
    INTERRUPT (grace) ------> strike 1: SIGINT ---------------> KeyboardInterrupt, if no query has raised it already
                              half of the grace period passes
                              strike 2: SIGINT ---------------> KeyboardInterrupt again: the code may have caught the
                                                                first one, and `os.system` ignores SIGINT
                              half of the grace period passes
                              strike 3: SIGKILL --------------> the worker ends, and then all that it started
    <------------------------ ENDED

If the cell ends in between, the rest does not happen, and no SIGINT is left over for the next cell:

    <---------------------------------------------------------- DONE
    TAKE -------------------> no more strikes; waits until each SIGINT that it asked for has been sent
    <------------------------ PRINTED

SIGINT goes to the worker's process group. The worker ignores it between cells, and from the third one on in a cell. A frame is
never cut: a SIGINT that comes while the worker reads or writes one raises KeyboardInterrupt afterwards. A second INTERRUPT
begins at strike 1 again, with a grace period of its own: a caller may stop a cell that has reached its time limit. If nothing
comes back in time, the host continues without the worker (`rlm.repl.remote`). With `isolation="none"` a thread does the
supervisor's part (`rlm.environments.inline`).
"""

from __future__ import annotations


class ToWorker:
    """From the host to a worker. The payload is marshalled; in a VALUE the number of the call comes before it."""

    OPEN = b"O"
    """Begins the REPL: contexts, history, tools, limits."""
    RUN = b"X"
    """Runs a cell."""
    EXTEND = b"N"
    """Brings further contexts, a new history, and an empty answer."""
    REPLIES = b"R"
    """The replies to a QUERY."""
    VALUE = b"V"
    """The result of a CALL, or what a PIECE asked for."""
    VOID = b"A"
    """The cell is interrupted: its queries and calls get no reply."""


class FromWorker:
    """From a worker to the host. The payload is a message (`messages`); in a CALL its number comes before it."""

    UP = b"U"
    """Cells can run."""
    FAILED = b"F"
    """The reason why the namespace cannot be made."""
    DONE = b"D"
    """A cell has ended: its result."""
    EXTENDED = b"n"
    """The further contexts are in the namespace, or the reason why they cannot be put there."""
    QUERY = b"Q"
    """Sends prompts to a sub-model, or to child runs."""
    CALL = b"C"
    """Calls a tool of the host."""
    PIECE = b"G"
    """Asks for the next piece of a context."""


class ToSupervisor:
    """From the host to a supervisor. The payload is JSON."""

    INTERRUPT = b"I"
    """Interrupt the cell, and kill the worker if the cell does not end."""
    TAKE = b"T"
    """The cell has ended: send what was printed."""
    KILL = b"K"
    """Kill the worker, and report how it ended."""
    END = b"Z"
    """End the REPL: the worker, all that it started, and its checkpoint."""
    PING = b"p"
    """Answer with PONG. The question goes by way of the fork server, so the answer shows that both still serve."""


class FromSupervisor:
    """From a supervisor to the host. The payload is JSON."""

    PRINTED = b"P"
    """What was printed."""
    ENDED = b"E"
    """How the worker ended, what was printed last, and the name of its checkpoint if it has one. Only PONG may follow."""
    PONG = b"q"
    """The answer to PING."""


GREETING = b"\nrlm-worker\n"
"""The first bytes that a worker sends over a single stream. The host skips what comes before them: a login message, or the
output of a program that starts the worker."""


class OneStream:
    """At a place with a single stream, which carries these frames beside those from and to the supervisor."""

    OPEN = b"o"
    """From the host: the sizes of the contexts in bytes, and the supervisor's settings (JSON)."""
    CONTEXT = b"B"
    """From the host: a piece of a context (raw bytes)."""
    WORK = b"L"
    """Either way: a piece of the worker's stream (raw bytes). An empty piece is the end of that stream."""


class ToForkServer:
    """From a supervisor to the fork server, packed by `fork_server.ORDER`."""

    FORK = b"f"
    """Fork a worker. With its descriptors."""
    RESUME = b"r"
    """Make the checkpoint of a worker that has ended the worker. With descriptors as for FORK."""
    INTERRUPT = b"i"
    """Send SIGINT to the process group of a worker."""
    KILL = b"k"
    """Kill a worker. Its checkpoint stays."""
    DROP = b"d"
    """Kill a worker and its checkpoint."""
    SAVE = b"c"
    """Register a new checkpoint in place of the last one. With a descriptor of its mailbox. Without a descriptor: only drop
    the last one."""
    LIMIT = b"l"
    """Bytes of memory that the processes of a REPL may have together."""
    PING = b"a"
    """Answer with PONG, even if the REPL has ended."""


class FromForkServer:
    """From the fork server to a supervisor, packed by `fork_server.REPORT`."""

    INTERRUPTED = b"j"
    """SIGINT has been sent."""
    ENDED = b"e"
    """Nothing is left of a REPL. With the status of its worker."""
    SAVED = b"s"
    """A worker has ended, and its checkpoint can be resumed. With the status of the worker."""
    TOO_MUCH = b"m"
    """The processes of a REPL are too many or take too much memory, and are being killed."""
    FAILED = b"x"
    """There is no worker: no process could be forked, or the checkpoint is gone. With an errno."""
    PONG = b"b"
    """The answer to PING."""


class Mailbox:
    """Over the mailboxes of workers (`process.post`) and of checkpoints (`process.checkpoint`)."""

    JOB = b"W"
    """From the supervisor to a worker. With descriptors of its stream to the host, and of files with contexts."""
    CHECKPOINT = b"h"
    """From a worker to the supervisor: there is a new checkpoint. With a descriptor of its mailbox."""
    NO_CHECKPOINT = b"y"
    """From a worker to the supervisor: there is no checkpoint any more."""
    REGISTER = b"H"
    """From a checkpoint to the fork server: register me. And back: the checkpoint is registered."""
    CLEAR = b"w"
    """From the fork server to a checkpoint: kill what the worker left. And back: that is done."""
    RESUME = b"u"
    """From the fork server to a checkpoint: become the worker. With the descriptors of a worker."""
