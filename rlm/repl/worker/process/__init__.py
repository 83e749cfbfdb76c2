"""The process in which the code of a REPL runs."""
