"""From measured errors to verdicts: rows with their gates, input noise, what was not verified."""
