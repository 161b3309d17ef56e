"""Errors, configuration, command line, files, trees: what every package uses."""
