"""The far side of a REPL: standard library only, for any CPython from 3.9 on, on Linux and macOS. This folder is all
that has to be in a container; in a zip file with a `__main__.py` it is one file.

Two processes run this code. In the **worker** the code of the cells runs; it has a stream of its own to the host. Beside
it stands the **supervisor**, which sleeps until it is needed: it collects what other programs and C code print, stops a
cell that takes too long, and ends the whole process tree. It forks the worker, and when one of the two is gone, so is
the other; a fresh REPL is another pair. Here both are forked from a warm parent (`parent.py`, `recruit.py`); in a
container they are started over stdin and stdout, and the supervisor passes the worker's frames on (`__main__.py`,
`relay.py`).

What they say to each other, in frames (`wire.py`), JSON but for B and L:

    host to worker        O  open: contexts, history, limits, ...   X  run a cell   R  replies to a query
                          A  the queries of the interrupted cell are void
    worker to host        U  up   Q  a query   D  the cell is done   F  the REPL cannot be
    host to supervisor    I  interrupt the cell, then kill it   T  the cell is done: what was printed?   Z  end everything
    supervisor to host    P  what was printed   E  how the worker ended; the last frame

    only over one stream  L  a piece of the worker's stream, either way   O  the sizes of the contexts
                          B  a piece of a context, in raw bytes

The host trusts nothing that comes from here.
"""
