"""Common mistakes in these architectures, in files named after those of the correct pairs."""
