"""Benchmarks and evaluation of what was generated."""
