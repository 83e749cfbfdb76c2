"""What starts, watches and ends the processes in which code runs."""
