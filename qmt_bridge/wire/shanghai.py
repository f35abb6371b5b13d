"""The clock of the Chinese exchanges: UTC+8 all year. Pure."""

from __future__ import annotations

from datetime import timedelta, timezone

# China has had no summer time since 1991. A fixed offset, because Windows has no zone database.
SHANGHAI_SECONDS = 8 * 3600
SHANGHAI = timezone(timedelta(seconds=SHANGHAI_SECONDS))
