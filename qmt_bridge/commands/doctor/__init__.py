"""`qmt-bridge doctor`: what is right and what is wrong on this machine, and what to do about it."""
