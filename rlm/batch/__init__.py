"""One question over many inputs: the map, its reader, its results file."""
