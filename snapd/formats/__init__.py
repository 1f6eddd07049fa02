"""Byte layouts, one home each: constants, encode, decode, checks. No files."""
