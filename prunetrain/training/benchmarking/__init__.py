"""Timing networks on this machine, for `prunetrain bench` and `--round-to auto`. No times are stored here.

`conditions.py` says how a network runs, and `steps.py` what is timed. `rounds.py` times several things in turn, `profiling.py` a network's
own steps one by one, and `peaks.py` the machine itself.
"""
