"""Reports and their formats: text, HTML, JUnit XML, JSON."""
