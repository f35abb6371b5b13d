"""The TLS certificate of a worker process, for uvicorn."""

from __future__ import annotations

import ssl
from collections.abc import Callable

from uvicorn.config import Config as ServerConfig

from qmt_bridge.addresses.certificate import Certificate
from qmt_bridge.config import load_config


def context_of_worker(server: ServerConfig, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """Return the context of this worker process, for uvicorn; raise `ConfigError` for files that cannot be used."""
    config = load_config()
    return Certificate(config.tls_cert, config.tls_key).context
