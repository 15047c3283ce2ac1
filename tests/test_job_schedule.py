"""Jobs by the calendar: every firing once, in any time zone, whatever the clock does."""

from __future__ import annotations

import zoneinfo
from datetime import datetime, timedelta, tzinfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.errors import ConfigError
from grami_actors.job import Order
from grami_actors.schedules import LATE, MOST_MISSED, Schedule

START = datetime.fromisoformat("2026-11-23T09:00:00+00:00").timestamp()
CRONS = ["* * * * *", "*/7 3-5 * * *", "30 2 * * *", "0 0 1 * *", "*/20 * * * * *", "15 2,3 * * 0"]
ZONES = ["UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/St_Johns"]


def zone(name: str) -> tzinfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except zoneinfo.ZoneInfoNotFoundError:
        pytest.skip(f"no {name}: neither the system nor the package tzdata brings time zones")


def firings(schedule: Schedule, begin: str, end: str) -> list[str]:
    """In UTC, from one day to the other, without the year."""
    at = datetime.fromisoformat(f"{begin}T00:00:00+00:00").timestamp()
    last = datetime.fromisoformat(f"{end}T00:00:00+00:00").timestamp()
    found = []
    while (at := schedule.next_after(at)) < last:
        found.append(schedule.ordered(at).idempotency_key.removeprefix(f"schedule:{schedule.name}:2026-"))
    return [each.removesuffix(":00+00:00") for each in found]


def clocked(cron: str) -> Schedule:
    zone("Europe/Berlin")
    return Schedule("s", cron, "t", timezone="Europe/Berlin")


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ({"name": "no spaces"}, "a name is up to 64 letters"),
        ({"name": ""}, "a name is up to 64 letters"),
        ({"name": "x" * 65}, "a name is up to 64 letters"),
        ({"tool": ""}, "which tool"),
        ({"catch_up": "some"}, "catch_up is 'some'; there are skip, one and all"),
        ({"order": Order(idempotency_key="k")}, "are set for each firing"),
        ({"order": Order(not_before=5.0)}, "are set for each firing"),
        ({"timezone": "Mars/Olympus"}, "no timezone 'Mars/Olympus'"),
        ({"timezone": "../etc/passwd"}, "no timezone"),
        ({"timezone": ""}, "no timezone"),
        ({"cron": ""}, "Wrong number of fields"),
        ({"cron": "61 * * * *"}, "Bad minute"),
        ({"cron": "@daily"}, "Wrong number of fields"),
        ({"cron": "0 0 30 2 *"}, "cron is '0 0 30 2 *'"),
        ({"cron": f"{'9' * 9_999} * * * *"}, "Exceeds the limit"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_and_says_why(details, words) -> None:
    with pytest.raises(ConfigError, match=words.replace("*", r"\*")):
        Schedule(**{"name": "s", "cron": "* * * * *", "tool": "t"} | details)


@given(st.text(max_size=20) | st.lists(st.text("0123456789*/-,#LW ", min_size=1, max_size=5), min_size=5).map(" ".join))
@settings(deadline=None)
@pytest.mark.slow
def test_every_text_is_a_schedule_that_fires_or_is_refused(cron) -> None:
    try:
        schedule = Schedule("s", cron, "t")
    except ConfigError:
        return
    assert schedule.next_after(START) > START


def test_the_key_of_a_firing_says_which_it_is_and_the_rest_of_the_order_is_kept() -> None:
    schedule = Schedule("s", "* * * * *", "t", order=Order(priority=7))
    key = "schedule:s:2026-11-23T09:00:00+00:00"
    assert schedule.ordered(START) == Order(priority=7, idempotency_key=key)


def test_another_time_of_day_or_zone_is_another_spec() -> None:
    assert Schedule("s", "1 * * * *", "t").spec == Schedule("other", "1 * * * *", "u").spec
    assert Schedule("s", "1 * * * *", "t").spec != Schedule("s", "2 * * * *", "t").spec


# --- the clocks change: in Berlin on 29 March at 2:00 to 3:00, and on 25 October at 3:00 to 2:00 ---


def test_a_time_of_day_is_that_of_the_place_in_summer_and_in_winter() -> None:
    assert firings(clocked("0 12 * * *"), "2026-03-28", "2026-03-30") == ["03-28T11:00", "03-29T10:00"]
    assert firings(clocked("0 12 * * *"), "2026-10-24", "2026-10-26") == ["10-24T10:00", "10-25T11:00"]


def test_a_time_that_the_spring_leaves_out_comes_right_after_it() -> None:
    assert firings(clocked("30 2 * * *"), "2026-03-28", "2026-03-31") == ["03-28T01:30", "03-29T01:00", "03-30T00:30"]


def test_a_time_that_the_autumn_repeats_comes_once_whenever_one_asks() -> None:
    schedule = clocked("30 2 * * *")
    assert firings(schedule, "2026-10-24", "2026-10-27") == ["10-24T00:30", "10-25T00:30", "10-26T01:30"]
    # At 2:10 for the second time; 2:30 was 40 minutes ago.
    again = datetime.fromisoformat("2026-10-25T01:10:00+00:00").timestamp()
    assert schedule.ordered(schedule.next_after(again)).idempotency_key == "schedule:s:2026-10-26T01:30:00+00:00"


def test_every_half_hour_is_every_half_hour_when_the_clocks_change() -> None:
    for begin, end in (("2026-03-29", "2026-03-30"), ("2026-10-25", "2026-10-26")):
        assert len(firings(clocked("*/30 * * * *"), begin, end)) == 47  # the midnight it begins with is not after it


# --- what was missed ---


def late(catch_up: str, by: timedelta, cron: str = "0 * * * *") -> list[float]:
    schedule = Schedule("s", cron, "t", catch_up=catch_up)
    found, next_at = schedule.due(START, now := START + by.total_seconds())
    assert next_at == schedule.next_after(now)
    return [at - START for at in found]


def test_nothing_is_due_before_its_time() -> None:
    for catch_up in ("skip", "one", "all"):
        assert Schedule("s", "0 * * * *", "t", catch_up=catch_up).due(START, START - 0.1) == ([], START)


def test_a_firing_in_time_is_due_whatever_becomes_of_missed_ones() -> None:
    for catch_up in ("skip", "one", "all"):
        assert late(catch_up, timedelta(0)) == [0.0]
        assert late(catch_up, timedelta(seconds=60)) == [0.0]


def test_what_was_missed_is_skipped_or_the_last_is_made_up_for_or_all_of_it_is() -> None:
    assert late("skip", timedelta(minutes=2)) == []
    assert late("skip", timedelta(hours=3, minutes=2)) == []
    assert late("skip", timedelta(hours=3, seconds=30)) == [3 * 3600.0]
    assert late("one", timedelta(hours=3, minutes=2)) == [3 * 3600.0]
    assert late("all", timedelta(hours=3, minutes=2)) == [0.0, 3600.0, 7200.0, 10800.0]


def test_of_a_year_of_missed_seconds_the_latest_are_made_up_for_and_that_takes_no_year() -> None:
    year = 365 * 86_400
    assert late("all", timedelta(days=365), "* * * * * *") == [float(year - 99 + each) for each in range(MOST_MISSED)]
    assert late("one", timedelta(days=365), "* * * * * *") == [float(year)]


@given(
    st.sampled_from(CRONS),
    st.sampled_from(ZONES),
    st.sampled_from(["2026-03-27", "2026-04-03", "2026-10-03", "2026-10-24", "2026-11-23"]),
    st.lists(st.floats(-7_200, 90_000), min_size=1, max_size=8),
)
@settings(deadline=None, max_examples=40)
@pytest.mark.slow
def test_every_firing_is_due_exactly_once_whatever_the_clock_does(cron, place, day, jumps) -> None:
    zone(place)
    schedules = {kind: Schedule("s", cron, "t", timezone=place, catch_up=kind) for kind in ("skip", "one", "all")}
    now = datetime.fromisoformat(f"{day}T20:00:00+00:00").timestamp()
    first = schedules["all"].next_after(now)
    nexts = dict.fromkeys(schedules, first)
    fired: dict[str, list[float]] = {kind: [] for kind in schedules}
    for jump in jumps:
        now += jump
        for kind, schedule in schedules.items():
            found, nexts[kind] = schedule.due(nexts[kind], now)
            fired[kind] += found
            assert kind == "all" or len(found) <= 1
            assert kind != "skip" or all(now - at <= LATE for at in found)
            assert all(at <= now for at in found)
            assert nexts[kind] > now
    everything, at = [], first
    while at < nexts["all"]:
        everything.append(at)
        at = schedules["all"].next_after(at)
    assert nexts["all"] == nexts["one"] == nexts["skip"] == at
    # Of a jump in which more was missed than is made up for, the latest are.
    assert len(everything) > MOST_MISSED or fired["all"] == everything
    for kind, found in fired.items():
        assert found == sorted(set(found)), kind
        assert set(found) <= set(everything), kind
    assert set(fired["skip"]) <= set(fired["one"]) <= set(fired["all"])
