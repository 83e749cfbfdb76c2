"""Scripted policies: the reference policy, and the blind ones that show what chance scores."""
