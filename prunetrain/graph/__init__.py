"""The LayerGraph and everything textual about it: trace, render, parse, shapes, costs."""
