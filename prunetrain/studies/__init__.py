"""Many runs at once: grids of methods and rates, folders of configurations; their tables and plots."""
