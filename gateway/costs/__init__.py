"""What clients may cost a worker: budgets, and long work in slices."""
