"""Measurements to be run again on any machine: `make bench`."""
