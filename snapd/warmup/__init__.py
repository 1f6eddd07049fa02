"""Loading cold blocks: on demand first, then hottest first in the background."""
