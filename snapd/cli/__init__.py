"""The commands `snapd` and `snapctl`, one command a file."""
