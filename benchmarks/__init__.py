"""Benchmarks: commands that answer one question each, and what they are made of."""
