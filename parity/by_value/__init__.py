"""Pairing of tensors by their values, in whichever layout."""
