"""Measurements that `make bench` repeats on any machine."""
