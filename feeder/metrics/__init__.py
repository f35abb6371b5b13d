"""The numbers of the feeder, and of the parts that report to it, for Prometheus."""
