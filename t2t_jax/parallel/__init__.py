"""Computation on several devices and processes: mesh, shardings, process groups."""
