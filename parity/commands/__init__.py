"""The command line: `python -m parity COMMAND`."""
