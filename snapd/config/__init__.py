"""Settings: one schema, read from defaults, a TOML file, the environment and flags."""

from snapd.config.load import load_settings
from snapd.config.settings import Settings

__all__ = ["Settings", "load_settings"]
