"""Pure decisions over tables: what to write, in which order to load, which reads to merge."""
