"""Writing new blocks to packs, and committing snapshots over them."""
