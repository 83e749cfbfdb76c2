"""Scorers of answers: the official rule, the strict one, and what a reward is made of."""
