"""Everything that invents data: the simulated market and its trading account."""
