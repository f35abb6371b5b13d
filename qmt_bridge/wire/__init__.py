"""The paper that feeder and gateway write on. Pure: no sockets, no clock, no logging, no threads."""
