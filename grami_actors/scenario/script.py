"""A scenario file: load it, find its swarm and its scenarios, play them. Floor 16."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from grami_actors.config import Config
from grami_actors.errors import ConfigError, describe
from grami_actors.manager import GrowthManager
from grami_actors.recording.recorder import recording
from grami_actors.recording.tape import header
from grami_actors.scenario.play import Mode, Result, ScenarioFunction, modes_of
from grami_actors.scenario.stage import play_one
from grami_actors.simulation import places
from grami_actors.swarm import Swarm


class Script(msgspec.Struct, frozen=True):
    """What a scenario file offers."""

    path: Path
    swarm: Swarm
    scenarios: tuple[ScenarioFunction, ...]
    module: ModuleType


def load(path: Path) -> Script:
    """Load a file with a ``swarm``; its folder can be imported from, and that in which its package is.

    Raises:
        ConfigError: there is no such file, or no ``swarm`` in it.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name one of its files, or play all of them with `pytest {path}`")
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    package, root = _package_of(path)
    name = _name_of(path, package)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Type hints of the script's classes are resolved through sys.modules.
    sys.modules[name] = module
    for folder in (str(root), str(path.resolve().parent)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    try:
        # Standard output is for what the command has to say: its first line, or its JSON.
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path} cannot be loaded: {_place(error, path)}{describe(error)}") from error
    swarm = getattr(module, "swarm", None)
    if not isinstance(swarm, Swarm):
        raise ConfigError(f"{path} defines no `swarm = Swarm(agents=[...], tools=[...])`")
    found = [each for each in vars(module).values() if modes_of(each)]
    for each in found:
        if problem := problem_of(each):
            raise ConfigError(f"{path}: the scenario {each.__name__} {problem}")
    return Script(path, swarm, tuple(found), module)


def problem_of(function: Callable[..., Any]) -> str:
    """What keeps a function from being a scenario, in words; empty if nothing does."""
    if not inspect.iscoroutinefunction(function):
        return "is not an async function" + ", for it has a `yield`" * inspect.isasyncgenfunction(function)
    signature = inspect.signature(function)
    try:
        signature.bind(None)
    except TypeError:
        return f"is called with `play` and nothing else, and takes {signature}"
    return ""


def _package_of(path: Path) -> tuple[str, Path]:
    """The package that a file belongs to, for its relative imports, and the folder in which that is."""
    folder = path.resolve().parent
    parts: list[str] = []
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts), folder


def _name_of(path: Path, package: str) -> str:
    """What its module is called; scripts of several folders may have the same name."""
    name = f"{package}.grami_script_{path.stem}".lstrip(".")
    while (other := sys.modules.get(name)) is not None and Path(other.__file__ or "").resolve() != path.resolve():
        name += "_"
    return name


def _place(error: BaseException, path: Path) -> str:
    """Where in the file it happened, or in what of the user's it imports."""
    if isinstance(error, SyntaxError):
        return ""  # its own text says where
    tried = traceback.walk_tb(error.__traceback__)
    lines = [(frame.f_code, line) for frame, line in tried if places.is_user(frame)]
    if not lines:
        return ""
    code, line = lines[-1]
    return f"line {line}: " if Path(code.co_filename).resolve() == path.resolve() else f"{places.place(code, line)}: "


def choose(script: Script, names: Sequence[str], mode: Mode | None = None) -> tuple[ScenarioFunction, ...]:
    """The scenarios with these names, or all that are played in this mode.

    Raises:
        ConfigError: there is no such name, or nothing to play; or one that is named is not played in this mode.
    """
    if not script.scenarios:
        raise ConfigError(f"{script.path} has no scenario: mark an async function with @scenario")
    known = {each.__name__: each for each in script.scenarios}
    for name in names:
        if name not in known:
            hint = "; play several files with pytest" if name.endswith(".py") else f"; it has {', '.join(known)}"
            raise ConfigError(f"{script.path} has no scenario {name!r}{hint}")
    chosen = tuple(known[name] for name in names) or script.scenarios
    fit = tuple(each for each in chosen if mode is None or mode in modes_of(each))
    if not fit or (names and fit != chosen):
        unfit = ", ".join(each.__name__ for each in chosen if each not in fit)
        raise ConfigError(f"{script.path}: {unfit} cannot be played like this: marked @scenario({mode}=False)")
    return fit


async def run(
    script: Script,
    names: Sequence[str],
    config: Config,
    watch: Callable[[Any], None],
    record: Path | None = None,
) -> tuple[Result, ...]:
    """Play scenarios, one after another, on one Growth Manager that is started for them; and record them, if wanted."""
    chosen = choose(script, names, "live")
    results = []
    manager = GrowthManager(script.swarm, config, publish=False)
    with recording(manager, record, header(script.path, [each.__name__ for each in chosen])):
        async with manager:
            watch(manager)
            for function in chosen:
                watch(function)
                result = await play_one(manager, function, watch)
                results.append(result)
                watch(result)
    return tuple(results)
