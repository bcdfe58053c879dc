"""Tools of the maintainers: campaigns that look for faults, and measurements of speed. Not installed."""
