"""Number formats: what is float32 by design, what leaks into a float64 run, and reduced formats."""
