"""The headers of every HTTP answer that tell a browser what it may do with it. Only data."""

from __future__ import annotations

# Of every HTTP answer. All are text or JSON, which needs nothing from elsewhere and is shown in no frame; the answer
# depends on who asks.
BROWSER_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "Origin",
}
# Of answers of a gateway with a certificate of its own; behind a proxy that has the certificate, the proxy decides.
# Without `includeSubDomains`, because names below this one may be other servers.
TLS_HEADERS = {"Strict-Transport-Security": "max-age=31536000"}
