"""The far side of a REPL: standard library only, for any CPython from 3.9 on, on Linux and macOS. This folder is all
that has to be in a container; in a zip file with a `__main__.py` it is one file.

Two processes run this code. The **supervisor** owns the byte stream to the host. It forks the **worker**, in which the
code of the cells runs, hands frames on, collects what the worker and its children print, stops cells that take too
long, ends the whole process tree, and forks a fresh worker when one is gone. Here both are forked from a warm parent
(`parent.py`); in a container they are started over stdin and stdout (`__main__.py`).

What they say to each other, in frames (`wire.py`), JSON but for B:

    host to supervisor    O  open: contexts, history, limits, ...   B  a piece of a context, in raw bytes
                          X  run a cell   I  interrupt it   R  replies to a query   Z  end everything
    supervisor to host    H  hello   U  the worker is up   Q  a query   N  the running cell is being interrupted
                          E  the end of the cell   F  the REPL cannot go on
    worker to supervisor  U, Q, F as above   D  the cell is done
    supervisor to worker  O, X, R as above   A  the queries of the interrupted cell are void

The host trusts nothing that comes from here, and the supervisor nothing that comes from the worker.
"""
