"""Many inputs: the map over them, its reader, its file of results."""
