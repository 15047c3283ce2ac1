"""How long jobs that ended are kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors.errors import ConfigError
from grami_actors.jobs.retention import Keep


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_a_key_always_outlives_the_result(results, keys) -> None:
    if results > keys:
        with pytest.raises(ConfigError, match="keys must outlive results"):
            Keep(results=results, keys=keys)
    else:
        assert Keep(results=results, keys=keys).keys >= results


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_time_that_is_none_is_refused(seconds) -> None:
    with pytest.raises(ConfigError):
        Keep(results=seconds)
