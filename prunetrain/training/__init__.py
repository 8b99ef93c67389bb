"""Training: data, loop, checkpoints, reconfiguration."""
