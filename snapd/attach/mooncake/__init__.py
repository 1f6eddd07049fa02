"""The attach port on a real Mooncake: its master and its store services are asked over HTTP, and
the bytes are read from shared memory that is ours."""
