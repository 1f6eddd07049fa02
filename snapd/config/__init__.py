"""Settings: one schema, read from defaults, a TOML file, the environment and flags; logging."""

from snapd.config.load import load_settings
from snapd.config.logs import configure_logging, event
from snapd.config.settings import Settings

__all__ = ["Settings", "configure_logging", "event", "load_settings"]
