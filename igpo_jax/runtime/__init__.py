"""Mesh, processes, files, statistics: what the algorithm runs on."""
