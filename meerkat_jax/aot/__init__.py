"""Ahead-of-time compilation for machines that are not here."""
