"""Scorers of answers: the strict rule and the official one."""
