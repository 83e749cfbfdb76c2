"""What a sandbox takes away from the code, by system calls."""
