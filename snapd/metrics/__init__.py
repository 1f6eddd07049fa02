"""Prometheus metrics by the contract's names."""

from snapd.metrics.registry import Metrics

__all__ = ["Metrics"]
