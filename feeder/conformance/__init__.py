"""Whether a source keeps the protocol: checks that a package of others runs on its own source (docs/sources.md)."""

from feeder.conformance.checks import SourceConformance as SourceConformance
