"""A run of kills that is short enough for every change; kills.py makes hundreds."""

import pytest
from kills import AIMS, run


@pytest.mark.timeout(900)
def test_forty_kills_lose_nothing():
    counts = run(40, seed=1)
    assert sum(counts[aim] for aim in AIMS) == 40
    assert counts["index"] + counts["graph"] >= 10
    assert counts["compared with an undisturbed store"] >= 10
