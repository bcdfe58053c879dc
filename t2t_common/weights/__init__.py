"""Framework-independent handling of weights, as numpy arrays with the official names and layouts."""
