"""Sources of other packages: how they are found and checked, and the calls that the feeder makes of any source."""
