"""The worker: the process in which the code of a REPL runs."""
