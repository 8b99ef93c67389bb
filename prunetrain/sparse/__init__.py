"""Smaller files for networks whose weights are mostly zero, and layers that skip the zeros."""
