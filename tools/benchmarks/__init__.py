"""Side-by-side measurements: speed, memory, start-up; see README.md here."""
