"""PruneTrain for your own training loop: `pruner.PruneTrain` is the entry point, the other modules are its parts."""
