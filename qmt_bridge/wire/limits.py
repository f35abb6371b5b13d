"""What one feeder takes at most, of all gateways and consumers together. Only numbers.

Gateways know them too: they keep a part of what is scarce for clients with a key (gateway/costs/shares.py).
"""

from __future__ import annotations

# Downloads that run, and those that ended less than five minutes ago.
MAX_DOWNLOADS = 1000
# Downloads that run of one connection; a gateway worker has one connection for all of its clients.
MAX_DOWNLOADS_OF_ONE = 200
# Codes of all downloads that run; they take some 10 MB.
MAX_DOWNLOAD_CODES = 100_000
# How many downloads run at the same time at the terminal; others wait (setting `xt_download_queue`). With only one, a
# download that hangs would delay the next for the whole timeout.
RUNNING_DOWNLOADS = 2
