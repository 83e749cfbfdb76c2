"""The host's side of a REPL: session, calls, tools, uploads. It is the same for every place."""
