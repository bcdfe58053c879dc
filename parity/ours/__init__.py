"""Support for this project's own models: pairs by name, weight files, and commands."""
