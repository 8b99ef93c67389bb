"""PruneTrain for someone's own training loop: `pruner.PruneTrain` is the door, the other modules are its parts."""
