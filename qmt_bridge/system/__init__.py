"""Where operating systems differ: clocks, the console, ports, and files that are in use."""
