"""The proof: real processes, a request trace, kills, and every byte compared."""
