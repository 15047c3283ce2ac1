"""Settings: where they come from, how they are read, and what is said about a wrong one."""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grami_actors.config import PREFIX, Config, Rate, check, descriptions, load, read
from grami_actors.errors import ConfigError
from grami_actors.permissions import Rule

NAMES = [field.name for field in msgspec.structs.fields(Config)]
untimed = settings(deadline=None)  # files and error texts take as long as the machine is busy
PAGE = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()


@pytest.fixture(autouse=True, scope="module")
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A working directory without settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("nowhere"))
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def refusal(file: Path, text: str, environ: dict[str, str] | None = None) -> str:
    """What is said about a file, without where it is."""
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load(environ or {}, file)
    assert refused.value.message.startswith(str(file))
    return refused.value.message.removeprefix(str(file))


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


@untimed
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


@untimed
@given(st.from_regex(r"Q[QZ]{8,20}", fullmatch=True))
def test_a_name_like_no_setting_is_refused_without_a_guess(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load({PREFIX + name: "1"})
    assert "did you mean" not in refused.value.message
    assert PREFIX + name in refused.value.message


def test_variables_that_a_server_writes_or_clients_read_are_no_settings() -> None:
    others = ("PORT", "URL", "TOKEN", "CA", "MODEL", "MODEL_URL", "CACHE", "LOG_LEVEL")
    environ = dict.fromkeys((*(PREFIX + name for name in others), "HOME", "PATH", "XGRAMI_HOST"), "anything")
    assert load(environ | {"GRAMI_CONFIG": ""}) == Config()


@pytest.mark.parametrize(
    ("environ", "given", "said"),
    [
        ({"GRAMI_MAX_INFLIGHT": "many"}, {}, "GRAMI_MAX_INFLIGHT is 'many'; it must be a whole number of at least 1"),
        ({"GRAMI_MAX_INFLIGHT": ""}, {}, "GRAMI_MAX_INFLIGHT is ''; it must be a whole number of at least 1"),
        ({"GRAMI_THREADS": "1.5"}, {}, "GRAMI_THREADS is '1.5'; it must be a whole number of at least 0"),
        ({"GRAMI_AUTH_TIMEOUT": "0"}, {}, "GRAMI_AUTH_TIMEOUT is '0'; it must be a number above 0"),
        ({"GRAMI_AUTH": "key"}, {}, "GRAMI_AUTH is 'key'; it must be 'keys' or 'jwt'; did you mean 'keys'?"),
        ({"GRAMI_COMPRESSION": "maybe"}, {}, "GRAMI_COMPRESSION is 'maybe'; it must be true or false"),
        ({"GRAMI_TLS_CERT": ""}, {}, "GRAMI_TLS_CERT is ''; it must be a path"),
        ({"GRAMI_RULES": "x"}, {}, "GRAMI_RULES cannot be used: rules stand in the file, as [[rules]]"),
        ({}, {"port": "80a"}, "--port is '80a'; it must be a whole number from 0 to 65535"),
        ({}, {"port": True}, "--port is True; it must be a whole number from 0 to 65535"),
        ({}, {"host": 5}, "--host is 5; it must be text"),
        ({}, {"state_dir": 5}, "--state-dir is 5; it must be a path"),
        ({}, {"allowed_hosts": "a.example"}, "--allow-host is 'a.example'; it must be a list of which each is text"),
        ({}, {"auth": ["keys", "jtw"]}, "--auth is 'jtw'; it must be 'keys' or 'jwt'; did you mean 'jwt'?"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_source_and_what_would_fit(
    environ: dict[str, str], given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(environ, **given)
    assert refused.value.message == said


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
    with pytest.raises(ConfigError, match=r"is \S+; it must be a (whole )?number"):
        load({}, **given)


# --- true and false ---


@pytest.mark.parametrize("text", ["1", "true", "yes", "on", "TRUE", " On "])
def test_a_variable_may_say_yes_in_many_words(text: str) -> None:
    assert load({"GRAMI_COMPRESSION": text}).compression is True


@pytest.mark.parametrize("text", ["0", "false", "no", "off", "Off"])
def test_a_variable_may_say_no_in_many_words(text: str, file: Path) -> None:
    file.write_text("compression = true")
    assert load({"GRAMI_COMPRESSION": text}, file).compression is False


# --- the file ---


def test_the_file_holds_all_kinds_of_settings(file: Path) -> None:
    file.write_text(
        """
        port = 8443
        reuse_port = true
        auth = ["keys"]
        drain_timeout = 5
        [[rules]]
        principals = ["a-*"]
        send = ["greet"]
        admin = true
        [[rules]]
        [[rates]]
        per_second = 0.5
        types = ["greet"]
        """
    )
    assert load({}, file) == Config(
        port=8443,
        reuse_port=True,
        auth=("keys",),
        drain_timeout=5.0,
        rules=(Rule(principals=("a-*",), send=("greet",), admin=True), Rule()),
        rates=(Rate(per_second=0.5, types=("greet",)),),
    )


_SOURCES = {"default": 64, "file": 1, "variable": 2, "argument": 3}


@untimed
@given(present=st.sets(st.sampled_from(["file", "variable", "argument"])))
def test_arguments_always_beat_variables_and_these_the_file_and_that_the_defaults(
    present: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "order.toml"
    file.write_text("max_inflight = 1" if "file" in present else "")
    environ = {"GRAMI_MAX_INFLIGHT": "2"} if "variable" in present else {}
    found = read(environ, file, max_inflight=3 if "argument" in present else None)
    winner = next((each for each in ("argument", "variable", "file") if each in present), "default")
    names = {"default": "default", "file": str(file), "variable": "GRAMI_MAX_INFLIGHT", "argument": "--max-inflight"}
    assert found.config.max_inflight == _SOURCES[winner]
    assert found.sources["max_inflight"] == names[winner]
    assert list(found.sources) == NAMES
    assert {source for name, source in found.sources.items() if name != "max_inflight"} == {"default"}


def test_the_file_is_the_one_named_else_the_variables_else_that_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load({}).threads == 64
    for number, name in enumerate(("grami.toml", "variable.toml", "given.toml")):
        Path(name).write_text(f"threads = {number}")
    assert read({}).sources["threads"] == "grami.toml"
    assert load({}).threads == 0
    assert load({"GRAMI_CONFIG": "variable.toml"}).threads == 1
    assert load({"GRAMI_CONFIG": "variable.toml"}, Path("given.toml")).threads == 2


def test_paths_in_the_file_are_relative_to_it_and_others_to_the_working_directory(file: Path) -> None:
    file.write_text('state_dir = "state"\ntls_cert = "/etc/cert.pem"\nkeys_file = "../keys.json"')
    found = load({"GRAMI_TLS_KEY": "key.pem"}, file)
    assert found.state_dir == file.parent / "state"
    assert found.tls_cert == Path("/etc/cert.pem")
    assert found.keys_file == file.parent / "../keys.json"
    assert found.tls_key == Path("key.pem")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# first\n\nmax_inflihgt = 5", ", line 3: 'max_inflihgt' is not a setting; did you mean 'max_inflight'?"),
        ("[server]\nport = 1", ", line 1: 'server' is not a setting; settings stand in no section"),
        ("host = 'a'\nqqq = 5", ", line 2: 'qqq' is not a setting"),
        ("threads = 1\n  port = '80'", ", line 2: port is '80'; it must be a whole number from 0 to 65535"),
        ("'port' = 80.0", ", line 1: port is 80.0; it must be a whole number from 0 to 65535"),
        ("compression = 1", ", line 1: compression is 1; it must be true or false"),
        ("auth = 'keys'", ", line 1: auth is 'keys'; it must be a list of which each is 'keys' or 'jwt'"),
        ("host = 1979-05-27", ", line 1: host is datetime.date(1979, 5, 27); it must be text"),
        ("rules = 5", ", line 1: rules is 5; it must be a list of which each is a table"),
        ("rules = [5]", ", line 1: rules is 5; it must be a table"),
        (
            "[[rules]]\n[[rules]]\n\nsned = []",
            ", line 4: in [[rules]] 'sned' is no part of it; did you mean 'send'?",
        ),
        (
            "[[rules]]\nsend = ['a']\n[[rules]]\nsend = 'a'",
            ", line 4: send is 'a'; it must be a list of which each is text",
        ),
        ("[[rates]]\nburst = 2", ", line 1: [[rates]] needs per_second, a number above 0"),
        ("[[rates]]\nper_second = 0", ", line 2: per_second is 0; it must be a number above 0"),
        ("rates = [{per_second = 0}]", ": per_second is 0; it must be a number above 0"),
        (
            "[[rules]]\nthreads = 5",
            ", line 2: in [[rules]] 'threads' is a setting: those stand above the first [[rules]]",
        ),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_its_line(text: str, said: str, file: Path) -> None:
    assert refusal(file, text) == said


@pytest.mark.parametrize("text", ["port =", "port = 1\nport = 2", "x = " + "[" * 100_000])
def test_a_file_that_is_no_toml_is_said_to_be_none(text: str, file: Path) -> None:
    assert refusal(file, text).startswith(" is not a TOML file: ")


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"settings\.toml cannot be read: No such file"):
        load({"GRAMI_CONFIG": str(file)})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load({}, file.parent)
    file.write_bytes(b"host = '\xff'")
    with pytest.raises(ConfigError, match="is not a TOML file"):
        load({}, file)


def test_a_key_that_was_put_where_its_files_name_belongs_is_not_repeated(file: Path) -> None:
    assert "c2VjcmV0" not in refusal(file, 'jwt_keys = {keys = [{k = "c2VjcmV0"}]}')
    assert "c2VjcmV0" not in refusal(file, 'keys_file = ["c2VjcmV0"]')


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(each)}" for key, each in value.items()) + "}"
    return "[" + ", ".join(map(as_toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


_LEAVES = st.one_of(st.booleans(), st.integers(-5, 10**6), st.floats(0, 9), st.text("ab*/.", max_size=4))
_TABLES = st.dictionaries(st.sampled_from(["send", "admin", "per_second", "x"]), _LEAVES, max_size=2)


@settings(untimed, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    values=st.dictionaries(
        st.sampled_from([*NAMES, "qqq"]),
        st.one_of(_LEAVES, st.lists(st.one_of(_LEAVES, _TABLES), max_size=2)),
        max_size=3,
    )
)
def test_whatever_the_file_holds_is_always_taken_as_it_stands_or_refused(values: dict[str, Any], file: Path) -> None:
    file.write_text("".join(f"{name} = {as_toml(value)}\n" for name, value in values.items()))
    try:
        found = read({}, file)
    except ConfigError:
        return
    for name, value in values.items():
        got = getattr(found.config, name)
        expected = file.parent / value if isinstance(got, Path) else tuple(value) if isinstance(value, list) else value
        assert got == expected or name in {"rules", "rates"}
        assert found.sources[name] == str(file)


# --- what must fit together ---


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tls_key": Path("k")}, "tls_key is set without tls_cert"),
        ({"reuse_port": True}, "set the port to share"),
        ({"auth": ("jwt",)}, "needs jwt_keys"),
        ({"auth": ("keys", "jwt"), "jwt_keys": Path("k")}, "jwt_audience"),
        ({"auth": ("jwt",), "jwt_audience": "a"}, "needs jwt_keys"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(Config(**given))
    with pytest.raises(ConfigError, match=said):
        load({}, **given)


@pytest.mark.parametrize(
    "given",
    [
        {"tls_key": Path("k"), "tls_cert": Path("c")},
        {"tls_cert": Path("c")},
        {"reuse_port": True, "port": 1},
        {"auth": ("jwt",), "jwt_keys": Path("k"), "jwt_audience": "a"},
        {"max_unauthenticated_bytes": 10, "max_message_bytes": 5},
    ],
)
def test_settings_that_fit_each_other_are_taken(given: dict[str, Any]) -> None:
    check(Config(**given))


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.1", "example.org", "localhost.example", "127.0.0.1.example"]
)
def test_a_host_that_others_reach_needs_credentials_or_an_express_permission(host: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check(Config(host=host))
    for word in (repr(host), "GRAMI_AUTH=keys", "`grami token create`", "--allow-anonymous"):
        assert word in refused.value.message
    check(Config(host=host, auth=("keys",)))
    check(Config(host=host, allow_anonymous=True))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_neither(host: str) -> None:
    check(Config(host=host))


@untimed
@given(address=st.ip_addresses())
def test_an_address_is_never_served_to_others_without_saying_so(address: Any) -> None:
    if address in ipaddress.ip_network("127.0.0.0/8") or str(address) == "::1":
        check(Config(host=str(address)))
    else:
        with pytest.raises(ConfigError, match="other machines may reach"):
            check(Config(host=str(address)))


# --- the documentation ---


def table_of(heading: str) -> dict[str, str]:
    """The rows of the tables in a section of the page: names and defaults."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| `?(.+?)`? \| \S", section, re.MULTILINE))


def written(default: Any) -> str:
    if default is msgspec.NODEFAULT:
        return "required"
    if isinstance(default, tuple):
        return json.dumps(default)
    if default is None:
        return "none"
    return json.dumps(default if isinstance(default, (bool, int, float)) else str(default))


@pytest.mark.parametrize(("heading", "kind"), [("All settings", Config), ("Rules", Rule), ("Rates", Rate)])
def test_the_page_of_settings_has_each_of_them_with_its_default(heading: str, kind: Any) -> None:
    assert table_of(heading) == {field.name: written(field.default) for field in msgspec.structs.fields(kind)}


def test_the_example_of_the_page_can_be_used(file: Path) -> None:
    file.write_text(PAGE.partition("```toml\n")[2].partition("```")[0])
    found = load({}, file)
    assert found.jwt_keys == file.parent / "jwks.json"
    assert len(found.rules) == 4


def test_the_page_names_the_variables_that_are_no_settings() -> None:
    names = set(re.findall(r"`(GRAMI_[A-Z_]+)`", PAGE.partition("\n## Variables that are no settings\n")[2]))
    assert len(names) == 9
    load(dict.fromkeys(names - {"GRAMI_CONFIG"}, "anything"))


def test_each_setting_is_described() -> None:
    assert list(descriptions()) == NAMES
    assert descriptions()["compression"] == (
        "permessage-deflate; 40 KiB more per connection, and four times the CPU at 4 KiB."
    )


@pytest.mark.parametrize("origin", ["app.example", "*", "null", "https://app.example/", "https://*.example", ""])
def test_an_origin_that_could_never_match_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match=r"an origin is like 'https://app\.example'"):
        check(Config(allowed_origins=(origin,)))
    check(Config(allowed_origins=("https://app.example", "http://localhost:8000", "chrome-extension://abc")))


def test_a_path_may_be_given_as_text() -> None:
    given = Config(state_dir="here", keys_file="keys.json")  # type: ignore[arg-type]
    assert (given.state_dir, given.keys_file, given.tls_cert) == (Path("here"), Path("keys.json"), None)
