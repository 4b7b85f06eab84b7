from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.redirect import pods


@pytest.fixture
def world() -> Iterator[pods.World]:
    with pods.world() as made:
        yield made
