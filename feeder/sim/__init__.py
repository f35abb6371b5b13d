"""Everything that is invented: the simulated market and its trading account."""
