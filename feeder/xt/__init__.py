"""Everything that names xtquant, and what only its session needs."""
