"""A report, and how it is written: text, HTML, JUnit XML, JSON."""
