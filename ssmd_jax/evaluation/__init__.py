"""Judges and measures of samples and models."""
