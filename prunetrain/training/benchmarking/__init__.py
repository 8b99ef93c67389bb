"""How long networks take on this machine: `prunetrain bench`, and what `--round-to auto` decides by. No times are stored here.

`conditions.py` says how a network runs, `steps.py` what is timed, `rounds.py` times several things in turn, `profiling.py` a network's own
steps one by one, `peaks.py` the machine itself.
"""
