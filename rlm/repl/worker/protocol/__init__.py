"""What the processes of a REPL and the host say to each other: kinds of frames, frames, messages, values of tools."""
