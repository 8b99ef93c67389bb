"""Penalties that make a network prunable while it trains."""
