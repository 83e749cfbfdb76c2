"""Sources of labelled text."""
