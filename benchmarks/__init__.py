"""Ours beside its peers, timed in turns in one process; see docs/results.md."""
