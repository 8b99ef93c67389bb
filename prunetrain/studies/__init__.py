"""Many runs at once: grids of methods and rates, folders of config files; their tables and plots."""
