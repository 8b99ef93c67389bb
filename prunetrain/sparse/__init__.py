"""Networks whose weights are mostly zero: smaller files, and layers that skip the zeros."""
