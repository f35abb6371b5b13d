"""Reports of a part to the feeder (docs/wire.md, "Reports")."""
