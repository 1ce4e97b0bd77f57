from __future__ import annotations

from collections.abc import Iterator

import pytest

from nfsearch.search.executors.cluster import RaySettings, cluster


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One Ray for all tests of a file: it takes four seconds to start."""
    with cluster(RaySettings(count=2)):
        yield
