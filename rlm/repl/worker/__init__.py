"""The far side of a REPL: standard library only, for any CPython from 3.9 on, on Linux and macOS. This folder is all
that has to be in a container; in a zip file with a `__main__.py` it is one file.

Three kinds of processes run this code. In a **worker** the code of the cells runs; there is one for each REPL, with a
stream of its own to the host. The **warm parent** forks workers, and reaps what they leave: it does nothing else, so that
there is nothing in it that a fork could hand on. The **supervisor** stands beside them all and sleeps until it is needed:
it collects what other programs and C code print, stops a cell that takes too long, and says how a worker ended. In a
container there is one worker, and the supervisor passes its frames on over stdin and stdout (`__main__.py`, `relay.py`).

On Linux all workers of a warm parent can live in a **sandbox** (`sandbox.py`): without the host's files, network and processes
(`view.py`, `seccomp.py`, `landlock.py`, by the system calls of `linux.py`).

What they say to each other, in frames (`wire.py`). A worker is told things marshalled, which takes less of it than JSON; what
it says are messages (`messages.py`); all else is JSON, but for B, L and V:

    host to worker        O  open: contexts, history, tools, limits, ...   X  run a cell   R  replies to a query
                          N  further contexts, a new history   V  the result of a tool, or a piece of a context: its number
                          and the value, marshalled   A  the queries and calls of the interrupted cell are void
    worker to host        U  up   Q  a query   C  a call of a tool: its number, and a message as in `values.py`
                          G  a piece of a context, please   N  they are there   D  the cell is done   F  the REPL cannot be
    host to supervisor    I  interrupt the cell, then kill it   T  the cell is done: what was printed?   K  kill the worker
                          Z  end everything
    supervisor to host    P  what was printed   E  how the worker ended, and the name of its
                          checkpoint, if there is one; the last frame

    only over one stream  L  a piece of the worker's stream, either way   O  the sizes of the contexts, settings
                          B  a piece of a context, in raw bytes

The host trusts nothing that comes from here. What the supervisor and the warm parent say to each other is in `parent.py`.
"""
