"""The far side of a REPL: the processes in which the code of the cells runs, and those that start, watch and end them.

It uses the standard library alone and runs on CPython 3.9 and later, on Linux and macOS. This folder is all that a container
needs; as a zip file with a `__main__.py` it is a single file.

Three kinds of processes run this code:

- A **worker** runs the code of the cells. Each REPL has one, with a stream of its own to the host.
- The **fork server** forks the workers, and ends what they leave behind. It does nothing else, and stays small: a fork costs
  what its parent holds, and hands it on.
- The **supervisor** watches all workers and sleeps until it is needed: it collects what other programs and C code print, stops
  a cell that takes too long, and tells the host how a worker ended.

On this machine one supervisor and one fork server serve all REPLs of equal isolation. In a container they serve one worker,
and the supervisor carries its stream too: stdin and stdout are then the only way to the host (`__main__`, `control.relay`).

The code lies in four packages:

- `protocol`: what the processes and the host say to each other.
- `process`: the worker.
- `sandbox`: keeps the host's files, network and processes out of reach of the workers. Linux only.
- `control`: the fork server and the supervisor.

`protocol.kinds` names every kind of frame, and draws how an interrupt goes. The formats:

    host -> worker              frames (`protocol.frames`), marshalled: a worker reads that faster than JSON
    worker -> host              frames with messages (`protocol.messages`): the host can read them safely and fast
    host <-> supervisor         frames of JSON
    supervisor <-> fork server  structs of fixed size (`control.fork_server`), with descriptors
    mailboxes                   single bytes and small structs (`process.post`, `process.checkpoint`), with descriptors

The host trusts nothing that comes from here.
"""
