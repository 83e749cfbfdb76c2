"""The sandbox: what the code of a REPL cannot see, reach or ask of the kernel. Linux only."""
