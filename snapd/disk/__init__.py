"""File system calls, behind one small port."""
