"""The protocol between store, clients and daemon: codes, messages, frames, a blocking client."""
