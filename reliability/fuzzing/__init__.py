"""The parts of `python -m reliability.fuzz`: what samples become, who reads them, what must not happen."""
