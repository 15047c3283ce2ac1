"""Settings: where they come from, how they are read, and what is said about a wrong one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors.config import PREFIX, Config, load
from grami_actors.errors import ConfigError

NAMES = [field.name for field in msgspec.structs.fields(Config)]


def test_without_anything_the_defaults_hold_and_only_this_machine_may_connect() -> None:
    assert load({}) == Config()
    assert (load({}).host, load({}).port) == ("127.0.0.1", 0)


def test_variables_are_read_with_the_types_of_the_settings() -> None:
    found = load(
        {"GRAMI_HOST": "::1", "GRAMI_MAX_INFLIGHT": "7", "GRAMI_DRAIN_TIMEOUT": "2.5", "GRAMI_STATE_DIR": "/x"}
    )
    assert found == Config(host="::1", max_inflight=7, drain_timeout=2.5, state_dir=Path("/x"))


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAMI_MAX_INFLIGHT", "9")
    assert load().max_inflight == 9


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", ()),
        ("a.example", ("a.example",)),
        (" a.example , b.example,", ("a.example", "b.example")),
        (",,", ()),
    ],
)
def test_lists_are_separated_by_commas(text: str, hosts: tuple[str, ...]) -> None:
    assert load({"GRAMI_ALLOWED_HOSTS": text}).allowed_hosts == hosts


@given(number=st.integers(1, 10**12))
def test_what_is_given_goes_before_the_environment_and_none_means_not_given(number: int) -> None:
    environ = {"GRAMI_MAX_REQUESTS": "5"}
    assert load(environ, max_requests=number).max_requests == number
    assert load(environ, max_requests=None).max_requests == 5


def test_given_values_may_be_lists_and_paths_as_text() -> None:
    found = load({}, allowed_origins=["https://a.example"], state_dir="here")
    assert found == Config(allowed_origins=("https://a.example",), state_dir=Path("here"))


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_variable_is_told_the_nearest_setting(name: str) -> None:
    if name == "port":
        return  # GRAMI_PORT is written by a server for its clients, so GRAMI_PORTX has no near setting to mean
    with pytest.raises(ConfigError, match=rf"GRAMI_{name.upper()}X is not a setting; did you mean '{name}'\?"):
        load({f"{PREFIX}{name.upper()}X": "1"})


def test_a_misspelt_argument_is_told_the_nearest_setting() -> None:
    with pytest.raises(ConfigError, match=r"'max_infligth' is not a setting; did you mean 'max_inflight'\?"):
        load({}, max_infligth=5)


@given(st.from_regex(r"Q[QZ]{8,20}", fullmatch=True))
def test_a_name_like_no_setting_is_refused_without_a_guess(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load({PREFIX + name: "1"})
    assert "did you mean" not in refused.value.message
    assert PREFIX + name in refused.value.message


def test_variables_that_a_server_writes_or_clients_read_are_no_settings() -> None:
    others = ("GRAMI_PORT", "GRAMI_URL", "GRAMI_MODEL", "GRAMI_LOG_LEVEL", "HOME", "PATH", "XGRAMI_HOST")
    assert load(dict.fromkeys(others, "anything")) == Config()


@pytest.mark.parametrize(
    ("environ", "given", "named"),
    [
        ({"GRAMI_MAX_INFLIGHT": "many"}, {}, "max_inflight"),
        ({"GRAMI_MAX_INFLIGHT": ""}, {}, "max_inflight"),
        ({"GRAMI_THREADS": "1.5"}, {}, "threads"),
        ({}, {"port": "80a"}, "port"),
        ({}, {"port": True}, "port"),
        ({}, {"host": 5}, "host"),
        ({}, {"state_dir": 5}, "state_dir"),
        ({}, {"allowed_hosts": "a.example"}, "allowed_hosts"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(
    environ: dict[str, str], given: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=rf"does not fit: .*`\$\.{named}`"):
        load(environ, **given)


def test_settings_cannot_be_changed_once_they_are_made() -> None:
    with pytest.raises(AttributeError):
        Config().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "given",
    [
        {"port": 65_536},
        {"port": -1},
        {"max_inflight": -1},
        {"request_timeout_ms": 0},
        {"drain_timeout": math.nan},
        {"drain_timeout": -1.0},
        {"threads": -1},
    ],
)
def test_a_number_that_no_server_could_use_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="does not fit"):
        load({}, **given)
