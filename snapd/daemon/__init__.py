"""The composition root of the daemon: builds the workers, owns their lives."""
