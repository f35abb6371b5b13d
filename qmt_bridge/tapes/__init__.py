"""Recording what the feeder publishes, and reading what was recorded."""
