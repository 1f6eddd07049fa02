"""The directory of packs and manifests: recovery, sealing, committing, verifying."""
