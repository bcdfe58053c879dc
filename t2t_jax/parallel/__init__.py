"""Several devices and processes: the mesh, shardings, process groups."""
