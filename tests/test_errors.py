"""The tree of errors and the codes of the wire: what the text says is what the code does."""

from __future__ import annotations

import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors import errors
from grami_actors.errors import RETRYABLE, ErrorCode, GramiError, ProtocolError, Reject, error_from_code

CLASSES: dict[str, type[GramiError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, GramiError)
}
BAD_MESSAGE = {
    "INVALID_JSON",
    "INVALID_MESSAGE",
    "UNKNOWN_TYPE",
    "VALIDATION_FAILED",
    "UNSUPPORTED_ENCODING",
    "UNSUPPORTED_VERSION",
    "UNSUPPORTED_FEATURE",
    "DUPLICATE_ID",
    "MESSAGE_TOO_LARGE",
    "IDEMPOTENCY_KEY_REUSED",
    "UNAUTHENTICATED",
    "INVALID_TOKEN",
    "TOKEN_EXPIRED",
    "TOPIC_NOT_FOUND",
    "UNRECOVERABLE_POSITION",
}
# Several errors share these codes; over the wire they come back as the one that the code is named after.
NAMED = {
    "AGENT_UNAVAILABLE": "AgentUnavailable",
    "AGENT_EXECUTION_FAILED": "AgentExecutionFailed",
    "JOB_NOT_FOUND": "JobError",
    "JOB_NOT_CANCELABLE": "JobError",
    "JOB_NOT_AWAITING_INPUT": "JobError",
}


def printed_tree() -> dict[str, str]:
    """Child to parent, as the docstring of errors.py draws them."""
    parents, above = {}, ["GramiError"]
    for branch, name in re.findall(r"^ {4}([│ ]*)[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE):
        depth = len(branch) // 4 + 1
        parents[name] = above[depth - 1]
        above[depth:] = [name]
    return parents


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    assert issubclass(GramiError, Exception)
    found = {name: kind.__bases__[0].__name__ for name, kind in CLASSES.items() if kind is not GramiError}
    assert printed_tree() == found


def test_every_error_of_the_tree_says_what_it_means() -> None:
    assert [name for name, kind in CLASSES.items() if not kind.__doc__] == []


@pytest.mark.parametrize("kind", CLASSES.values())
def test_every_error_has_a_code_of_the_wire(kind: type[GramiError]) -> None:
    assert kind.error_code in set(ErrorCode)


@pytest.mark.parametrize("code", ErrorCode)
def test_a_code_of_the_wire_gives_the_error_that_has_it(code: ErrorCode) -> None:
    error = error_from_code(code.value, "words", param="$.x", retry_after_ms=5)
    assert (error.error_code, error.message, error.param, error.retry_after_ms) == (code, "words", "$.x", 5)
    owners = {name for name, kind in CLASSES.items() if "error_code" in vars(kind) and kind.error_code == code}
    if code in BAD_MESSAGE:
        assert type(error) is ProtocolError
    elif code in NAMED:
        assert type(error).__name__ == NAMED[code]
    else:
        assert {type(error).__name__} == (owners - {"Reject"} or {"GramiError"})


@given(code=st.text(), message=st.text())
def test_a_code_that_a_newer_server_may_send_is_kept(code: str, message: str) -> None:
    error = error_from_code(code, message)
    assert (error.error_code, error.message, str(error)) == (code, message, message)
    assert error.retryable == (code in RETRYABLE)


def test_retryable_codes_are_codes() -> None:
    assert RETRYABLE - set(ErrorCode) == set()


def test_a_reject_without_words_says_its_code() -> None:
    assert Reject("QUOTA_EXCEEDED").message == "QUOTA_EXCEEDED"
    assert GramiError().message == ""


@pytest.mark.parametrize("error", [GramiError("a", code="CANCELLED", param="$.b", retry_after_ms=1), Reject("X", "y")])
def test_an_error_survives_the_way_to_another_process(error: GramiError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.error_code, again.message, vars(again)) == (error.error_code, error.message, vars(error))
