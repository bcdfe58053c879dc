"""Framework-independent parts of a training run: loop, logging, throughput, checkpoint schedule, resume checks."""
