"""Measure performance as ratios: each figure next to a companion measured in the same run (docs/performance.md)."""
