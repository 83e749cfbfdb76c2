"""What starts, monitors and ends the processes in which code runs.

    host
     |  starts
    supervisor                 one monitor for each REPL (monitor.py); for a host on this machine (local_supervisor.py), or
     |                         for one at the other end of a byte stream (relay.py)
     |  forks
    fork server                forks workers, ends process trees (process_trees.py), measures memory (memory.py)
     |  forks
    worker                     runs the cells of one REPL (process/)
     |  forks twice
    checkpoint                 a copy of the worker, made between two cells, that sleeps (checkpoint_handle.py)

A checkpoint is no child of its worker: the process between them ends, and the checkpoint becomes a child of the fork
server. So it outlives the worker. When the worker ends, the checkpoint kills what the worker left, and becomes the worker.

In a sandbox the supervisor forks twice too: the process between enters new namespaces, and the fork server is the first
process of the new pid namespace. The fork server then forks the **namespace maker** (sandbox/sandbox.py). For each worker
the namespace maker makes a pid namespace and its first process, as a child of the fork server. The fork server forks the
worker into that namespace. Orphans in the namespace, so checkpoints too, become children of its first process.
"""
