"""Command lines, terminal output and atomic file writes."""
