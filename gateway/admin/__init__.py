"""Administration: what all workers do and whom they serve, collected through the feeder (docs/administration.md)."""
