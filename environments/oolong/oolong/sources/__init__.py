"""Where the texts and labels of a task come from."""
