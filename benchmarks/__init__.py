"""Performance as ratios: each figure beside a companion that is measured in the same run (docs/performance.md)."""
