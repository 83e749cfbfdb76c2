"""Measurements that a person can run again: `make bench`."""
