"""One run: ask the root model, parse its reply, execute, observe, answer queries, keep the limits of the whole tree."""
