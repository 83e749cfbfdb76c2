"""Scripted policies: the reference policy, and the blind policies that measure chance."""
