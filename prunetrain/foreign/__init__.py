"""Untrusted files: check what they declare before anything is built from it. No torch here.

In: paths and open files. Out: their checked content, or a `RefusedFileError` that says on one line what is wrong. The readers of
checkpoints, weights, data sets and settings rely on these checks, and put the file's name before the reason.
"""
