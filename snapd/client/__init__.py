"""The client that SGLang uses, with the names and return codes of `mooncake.store`."""
