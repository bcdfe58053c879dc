"""The parts of `python -m tools.reliability.fuzz`: what samples become, who reads them, what must not happen."""
