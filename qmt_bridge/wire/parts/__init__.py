"""What the parts beside feeder and gateway tell of themselves."""
