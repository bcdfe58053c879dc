"""The verdict for agents and CI: whether a port that nobody has to trust computes what a PyTorch reference computes.

The port's file runs in a process of its own, which sees shapes and no numbers: JAX traces it and exports the program.
A second process, without the port's file, runs the program on secret weights and inputs. The numbers are judged in the
process of the caller. `parity.verify.verify` is where to begin.
"""
