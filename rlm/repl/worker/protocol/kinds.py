"""The kinds of frames and messages, named once for each stream. A kind is one byte, and no byte stands for two kinds.

How an interrupt goes. It is the one sequence with three processes in it:

    host                          supervisor                    worker
    ----                          ----------                    ------
    the time limit is reached
    ToWorker.VOID --------------------------------------------> its queries and calls get no reply any more
    ToSupervisor.INTERRUPT -----> strike 1
                                  ToForkServer.INTERRUPT -----> SIGINT: KeyboardInterrupt in the cell
                                  half of the grace passes
                                  strike 2 -------------------> SIGINT again: the code may have caught the first
                                  half of the grace passes
                                  strike 3: kill -------------> SIGKILL for the whole process tree
    <---------------------------- FromSupervisor.ENDED

If the cell ends in between, the rest does not happen:

    <---------------------------------------------------------- FromWorker.DONE
    ToSupervisor.TAKE ----------> no further strike
    <---------------------------- FromSupervisor.PRINTED

The worker counts strikes too, and ignores a SIGINT that comes when no cell runs.
"""

from __future__ import annotations


class ToWorker:
    """From the host to a worker: frames whose payload is marshalled. VALUE begins with a number."""

    OPEN = b"O"
    """Contexts, history, tools, limits: what the namespace is made of."""
    RUN = b"X"
    """A cell."""
    EXTEND = b"N"
    """Further contexts, and a new history."""
    REPLIES = b"R"
    """The replies to a query."""
    VALUE = b"V"
    """The result of a tool, or a piece of a context."""
    VOID = b"A"
    """The queries and calls of the interrupted cell get no reply."""


class FromWorker:
    """From a worker to the host: frames whose payload is a message (`messages`). CALL begins with a number."""

    UP = b"U"
    """The namespace is there."""
    FAILED = b"F"
    """The namespace cannot be made."""
    DONE = b"D"
    """The end of a cell."""
    EXTENDED = b"n"
    """The further contexts are there, or what is wrong with them."""
    QUERY = b"Q"
    """Prompts for a sub-model."""
    CALL = b"C"
    """A call of a tool."""
    PIECE = b"G"
    """Asks for the next piece of a context."""


class ToSupervisor:
    """From the host to a supervisor: frames of JSON."""

    INTERRUPT = b"I"
    """Interrupt the cell, and kill the worker if that does not end it."""
    TAKE = b"T"
    """The cell is done: what was printed?"""
    KILL = b"K"
    """Kill the worker, and say how it ended."""
    END = b"Z"
    """End everything."""


class FromSupervisor:
    """From a supervisor to the host: frames of JSON."""

    PRINTED = b"P"
    """What was printed."""
    ENDED = b"E"
    """How the worker ended, what was printed last, and the name of its checkpoint. The last frame."""


class OneStream:
    """Over a single stream, which carries the frames of both others too."""

    OPEN = b"o"
    """From the host: the sizes of the contexts, and settings (JSON)."""
    CONTEXT = b"B"
    """From the host: a piece of a context (raw bytes)."""
    WORK = b"L"
    """Either way: a piece of the worker's stream (raw bytes); an empty one is its end."""


class ToForkServer:
    """From a supervisor to the fork server: packed by `fork_server.ORDER`."""

    FORK = b"f"
    RESUME = b"r"
    """Put the checkpoint of a REPL in the place of its worker."""
    INTERRUPT = b"i"
    KILL = b"k"
    DROP = b"d"
    """Kill the worker, and leave no checkpoint."""
    SAVE = b"c"
    """Take the mailbox of a new checkpoint."""
    LIMIT = b"l"
    """The memory that the processes of the REPL may have together (bytes)."""


class FromForkServer:
    """From the fork server to a supervisor: packed by `fork_server.REPORT`."""

    INTERRUPTED = b"j"
    ENDED = b"e"
    """Nothing is left of a REPL."""
    SAVED = b"s"
    """The worker has ended, and its checkpoint waits."""
    TOO_MUCH = b"m"
    """The processes of a REPL are too many or too large, and are being killed."""
    FAILED = b"x"
    """No process could be forked."""


class Mailbox:
    """Over the mailboxes of workers and of checkpoints: datagrams, some with descriptors."""

    JOB = b"W"
    """To a worker: descriptors of its stream and of files with contexts."""
    CHECKPOINT = b"h"
    """From a worker: it has a checkpoint. With a descriptor of the checkpoint's mailbox."""
    NO_CHECKPOINT = b"y"
    """From a worker: it has none."""
    HERE = b"H"
    """A checkpoint says that it exists, and hears that this is known."""
    CLEAR = b"w"
    """A checkpoint is asked to end what its worker left, and says that it has."""
    RISE = b"u"
    """A checkpoint becomes the worker. With the descriptors of a worker."""
