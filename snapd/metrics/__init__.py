"""Prometheus metrics by the contract's names."""
