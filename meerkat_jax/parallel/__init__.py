"""Meshes, processes, placement of parameters, quantisation."""
