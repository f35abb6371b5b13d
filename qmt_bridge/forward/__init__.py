"""The forwarder: between the feeder and many gateway hosts, so that the feeder sends one copy for all of them."""
