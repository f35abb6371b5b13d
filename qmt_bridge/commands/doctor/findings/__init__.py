"""The checks of `qmt-bridge doctor`: each returns a finding from facts that it is given."""
