"""Number formats: float32 by design, float32 that leaks into a float64 run, and reduced-precision formats."""
