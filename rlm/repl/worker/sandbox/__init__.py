"""The sandbox: it limits what the code of a REPL can see, reach and ask of the kernel. Linux only."""
