"""Tokenizers, sources of text, and the grain pipeline of fixed-length records."""
