"""The protocol's own test suite: whatever the library answers to it, our listener answers no worse."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.autobahn import suite


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_no_case_of_the_protocols_test_suite_goes_worse_than_with_the_bare_library(tmp_path: Path) -> None:
    if reason := suite.missing():
        pytest.skip(reason)
    ours = suite.outcomes("ours", suite.QUICK, tmp_path)
    groups = tuple(case.removesuffix("*") for case in suite.QUICK)
    assert suite.worse(ours, {case: said for case, said in suite.expected().items() if case.startswith(groups)}) == []
    assert len(ours) == 247


def test_what_was_not_run_and_what_got_worse_is_found() -> None:
    before = {"10.1.1": "NON-STRICT / OK", "9.1": "FAILED / UNCLEAN", "2.1": "OK / OK", "1.1.1": "OK / OK"}
    after = {"10.1.1": "OK / OK", "9.1": "OK / FAILED", "1.1.1": "OK / UNCLEAN"}
    assert suite.worse(after, before) == [
        "1.1.1: OK / UNCLEAN instead of OK / OK",
        "2.1: not run instead of OK / OK",
    ]
    assert suite.worse(before, before) == []
