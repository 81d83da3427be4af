"""Benchmarks: ratios to something that everybody has, never asserted in a test."""
