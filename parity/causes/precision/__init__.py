"""Causes of errors in number formats and rounding."""
