"""snapd: the persistence and warm-up sidecar for LLM KV caches."""

__version__ = "0.1.0"
