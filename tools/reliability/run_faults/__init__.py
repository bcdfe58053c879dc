"""Faults in training runs: killed processes, full disks, odd folders, process groups."""
