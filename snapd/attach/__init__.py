"""The attach port: one way to list a store's blocks and to give blocks back, an adapter a store."""
