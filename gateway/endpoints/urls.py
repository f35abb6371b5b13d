"""The six WebSocket URLs. What runs in them runs in the sessions' tasks.

Frames and errors as in docs/websocket.md, "The documented layer" and "Opting in".
"""

from __future__ import annotations

from gateway.endpoints.download_progress import DownloadProgress
from gateway.endpoints.formula import Formula
from gateway.endpoints.l2_thousand import L2Thousand
from gateway.endpoints.realtime import Realtime
from gateway.endpoints.trade import Trade
from gateway.endpoints.whole_quote import WholeQuote
from gateway.session import Endpoint

ENDPOINTS: dict[str, type[Endpoint]] = {
    "/ws/realtime": Realtime,
    "/ws/whole_quote": WholeQuote,
    "/ws/l2_thousand": L2Thousand,
    "/ws/download_progress": DownloadProgress,
    "/ws/formula": Formula,
    "/ws/trade": Trade,
}
