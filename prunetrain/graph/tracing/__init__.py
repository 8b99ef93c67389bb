"""How `trace` works: record what a model calls, compare batch sizes, turn calls into steps, merge train and eval mode."""
