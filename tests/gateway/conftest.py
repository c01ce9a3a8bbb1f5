from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.support import Fleet, a_fleet
from tests.support import short_dir


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """A gateway for the tests of one module, which use service names of their own."""
    settings = {"CDN_GATEWAY_CONNECT_S": "5", "CDN_GATEWAY_MAX_BODY_BYTES": str(4 << 20)}
    settings["CDN_OODA"] = "off"  # instances take turns, so that who is asked is no matter of chance
    with short_dir() as path, a_fleet(path, **settings) as fleet:
        yield fleet
