"""Shows runs and maps on a terminal."""
