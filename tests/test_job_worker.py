"""Python tools in the process that a shim makes for them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.attempts import PATIENCE, Attempt


def python(function: str, **arguments: Any) -> dict[str, Any]:
    return {
        "path": [str(Path(__file__).parents[1]), *filter(None, sys.path)],
        "module": "tests.job_tools",
        "function": function,
        "file": None,
        "arguments": arguments,
    }


def ended(base: Path, function: str, **arguments: Any) -> tuple[Any, dict[str, Any], bytes]:
    """The result, exit.json and the log of a run of one of the tools."""
    with Attempt(base, python=python(function, **arguments)) as attempt:
        end = attempt.run()
        return attempt.result if end["result"] else None, end, attempt.log


def test_a_function_gets_its_arguments_and_its_result_is_kept(tmp_path: Path) -> None:
    result, end, log = ended(tmp_path, "double", number=4)
    assert (result, log, end["code"]) == ([8.0, "none"], b"doubles none\n", 0)


def test_arguments_and_results_are_converted_to_their_types(tmp_path: Path) -> None:
    result, _, _ = ended(tmp_path, "shift", frame={"number": 1, "day": "2026-11-23"})
    assert result == {"number": 2, "day": "2026-11-23"}


def test_a_coroutine_function_is_awaited(tmp_path: Path) -> None:
    assert ended(tmp_path, "wait", seconds=0)[0] == "waited"


def test_arguments_that_do_not_fit_any_more_are_an_error_for_good(tmp_path: Path) -> None:
    _, end, _ = ended(tmp_path, "shift", frame={"number": "one"})
    assert (end["error"]["code"], end["error"]["permanent"]) == ("VALIDATION_FAILED", True)
    assert "$.number" in end["error"]["message"]


def test_a_function_that_is_not_there_is_an_error_for_good(tmp_path: Path) -> None:
    _, end, log = ended(tmp_path, "nonesuch")
    assert end["error"]["permanent"] is True
    assert b"nonesuch" in log


@pytest.mark.parametrize(
    ("function", "code", "told"),
    [
        ("fails", "UPSTREAM_RATE_LIMITED", "no frames"),
        ("breaks", "TOOL_EXECUTION_FAILED", "ValueError: broken"),
        ("leaves", "TOOL_EXECUTION_FAILED", "SystemExit: 3"),
        ("vanishes", "TOOL_EXECUTION_FAILED", "before the function returned"),
        ("segfaults", "TOOL_EXECUTION_FAILED", "SIGSEGV"),
        ("no_json", "TOOL_EXECUTION_FAILED", "object"),
        ("big", "TOOL_EXECUTION_FAILED", "the result has 1000002 bytes, at most 65536"),
    ],
)
def test_how_a_function_failed_is_told(tmp_path: Path, function: str, code: str, told: str) -> None:
    result, end, _ = ended(tmp_path, function)
    assert result is None
    assert end["error"]["code"] == code
    assert told in end["error"]["message"]
    assert end["error"]["permanent"] is (function in {"no_json", "big"})


def test_the_context_tells_everything(tmp_path: Path) -> None:
    with Attempt(tmp_path, python=python("tell"), checkpoint={"at": 0}) as attempt:
        attempt.run()
        assert attempt.result == {"id": "job_1", "attempt": 1, "resume": {"at": 0}, "cancelled": False}
        said = [{name: value for name, value in line.items() if name != "at"} for line in attempt.record]
        assert said == [
            {"type": "progress", "fraction": 0.5, "message": "half"},
            {"type": "checkpoint", "data": {"at": 1}},
            {"type": "artifact", "name": "text", "bytes": 7},
            {"type": "artifact", "name": "bytes", "bytes": 2},
            {"type": "artifact", "name": "file", "bytes": 4},
        ]
        kept = attempt.folder.parent / "artifacts"
        assert {path.name: path.read_bytes() for path in kept.iterdir()} == {
            "text": b"content",
            "bytes": b"\0\1",
            "file": b"made",
        }
        assert sorted(attempt.log.splitlines()) == [b"a line", b"output"]


def test_the_context_refuses_what_cannot_be_kept(tmp_path: Path) -> None:
    assert ended(tmp_path, "refused")[0] == ["ValueError", "FileNotFoundError", "ValueError", "ValueError"]


def test_lines_of_many_threads_are_whole(tmp_path: Path) -> None:
    log = ended(tmp_path, "crowd")[2]
    assert sorted(log.splitlines()) == sorted(b"x" * 5000 + str(n).encode() for n in range(20) for _ in range(5))


@pytest.mark.parametrize("function", ["ask", "ask_awaited"])
def test_questions_are_answered_in_their_order(tmp_path: Path, function: str) -> None:
    with Attempt(tmp_path, python=python(function)) as attempt:
        shim = attempt.start()
        for number, question in enumerate(("first?", "second?")):
            asked = attempt.until(lambda number=number: attempt.record[number:])
            assert asked[0]["question"] == question
            attempt.order(input={"answer": number})
        assert shim.wait(PATIENCE) == 0
        assert attempt.result == [{"answer": 0}, {"answer": 1}]


def test_a_second_question_is_refused_while_the_first_is_open_and_no_other(tmp_path: Path) -> None:
    with Attempt(tmp_path, python=python("asks_twice")) as attempt:
        shim = attempt.start()
        for number in (1, 2):
            attempt.until(lambda number=number: len(attempt.record) == number)
            attempt.order(input=number)
        assert shim.wait(PATIENCE) == 0
        assert attempt.result == [1, "the job waits for the answer to another question already", 2]


@pytest.mark.parametrize(
    ("function", "told"), [("until_cancelled", b"ends in good order"), ("cleans_up", b"cleans up")]
)
def test_a_function_that_is_cancelled_can_end_in_good_order(tmp_path: Path, function: str, told: bytes) -> None:
    with Attempt(tmp_path, python=python(function), soft_grace=30) as attempt:
        shim = attempt.start()
        attempt.until(lambda: attempt.record)
        attempt.order(stop="user")
        assert shim.wait(PATIENCE) == 0
        assert told in attempt.log
        assert (attempt.exit["reason"], attempt.exit["error"]) == ("user", None)


def test_a_function_has_only_its_own_descriptors(tmp_path: Path) -> None:
    assert ended(tmp_path, "descriptors")[0] == ["null", "pipe:", "pipe:", "socket:", "tree.lock"]


@pytest.mark.parametrize("module", ["grami_script_mine", "__main__"])
def test_a_tool_of_a_script_is_found_in_its_file(tmp_path: Path, module: str) -> None:
    script = tmp_path / "mine.py"
    script.write_text("def own(a: int) -> str:\n    return __name__\nif __name__ == '__main__':\n    1 / 0\n")
    told = python("own", a=1) | {"module": module, "file": str(script)}
    with Attempt(tmp_path, python=told) as attempt:
        attempt.run()
        assert attempt.result == {"__main__": "__mp_main__"}.get(module, module)


@pytest.mark.slow
def test_a_decorated_tool_is_run_with_the_path_of_the_server(tmp_path: Path) -> None:
    (tmp_path / "made_up.py").write_text(
        "import sys\nfrom grami_actors import tool\n@tool\ndef own(a: int) -> list[str]:\n    return sys.path\n"
    )
    told = python("own", a=1) | {"module": "made_up"}
    told["path"].insert(0, str(tmp_path))
    with Attempt(tmp_path, python=told) as attempt:
        attempt.run()
        assert attempt.result == told["path"]
        assert json.loads((attempt.folder / "spec.json").read_bytes())["python"] == told
