"""Weights as numpy arrays with the official names and layouts, whatever framework they are for."""
