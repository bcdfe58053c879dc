"""The check: its stages, and the function that users call."""
