"""The page of a run: what is in it, what is not, and how it behaves in a real browser."""

from __future__ import annotations

import asyncio
import html
import itertools
import json
import re
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket_connect

from grami_actors import ActorSystem, Agent, Message, handles
from grami_actors.history import AnyEntry, Framed, History, Injected, Life, Lost, Ran, Remark, Told, Wrote
from grami_actors.recording import report
from grami_actors.recording.report import render, write

CHROMIUM = shutil.which("chromium")
PATIENCE = 40.0
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

HOSTILE = [
    "</script><script>document.title = 'hacked'</script>",
    "<img src=x onerror=\"document.title = 'hacked'\">",
    "{{DATA}}{{POLICY}}",
    "<!--<script>",
    "]]>&lt;&amp;'\"`${document.title = 'hacked'}",
    "javascript:document.title='hacked'",
    "line\u2028paragraph\u2029null\x00bell\x07",
    "half a character \ud800",
    "__proto__",
    "huge " * 20_000,
]


def told(at: float, sender: str, to: str, **more: Any) -> Told:
    return Told(**{"at": at, "sender": sender, "to": to, "type": "job", "sent": at - 0.02, "taken": at - 0.01, **more})


EVERY_KIND: list[AnyEntry] = [
    Remark(at=0.0, who="script", text="begins"),
    Framed(at=0.01, connection="connection-1", way="in", frame={"type": "order"}),
    told(0.1, "shop", "stock", type="reserve", asked=True, result=3, trace="aa", span="22", cause="11"),
    told(0.2, "", "shop", type="order", asked=True, result="sent", trace="aa", span="11", sent=0.02, taken=0.03),
    told(0.3, "", "shop", type="order", asked=True, outcome="TIMEOUT", error="too late", trace="bb", span="33"),
    Life(at=0.31, actor="stock", stage="failed", text="the shelf fell"),
    Life(at=0.33, actor="stock", stage="restarted", text="restart 1"),
    Lost(at=0.34, sender="shop", to="nobody", type="audit", reason="no such actor"),
    Injected(at=0.35, fault="delay", names=("shop", "stock"), text="30 ms"),
    Wrote(at=0.36, request="digest", prompt={"text": "?"}, pieces=("one", " two")),
    Ran(at=0.37, tool="score", request="digest", arguments={"text": "x"}, result=0.5),
    Remark(at=0.4, who="script", text="all is well", passed=True),
    Remark(at=0.41, who="script", text="nobody failed", passed=False),
]


LATE = "outside → shop order TIMEOUT"


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*)</script>\n<script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def skeleton(page: str) -> str:
    """A page without what differs from run to run."""
    page = re.sub(r'(id="data">).*?(</script>\n<script>)', r"\1\2", page, flags=re.DOTALL)
    return re.sub(r"<title>.*?</title>", "", page, flags=re.DOTALL)


# --- what is written ---


def test_the_same_entries_give_the_same_page() -> None:
    assert render("run", EVERY_KIND, facts={"seed": "7"}) == render("run", iter(EVERY_KIND), facts={"seed": "7"})


def test_the_page_names_nothing_outside_itself() -> None:
    page = render("run", EVERY_KIND)
    assert re.findall(r"(?:src|href|action)=|@import|url\(|https?:", page) == []


def test_the_policy_lets_only_the_script_and_the_style_of_the_page_run() -> None:
    found = re.search(r'Content-Security-Policy" content="([^"]*)"', render("run", EVERY_KIND))
    assert found is not None
    assert re.fullmatch(
        r"default-src 'none'; script-src 'sha256-[\w+/]{43}='; style-src 'sha256-[\w+/]{43}='; "
        r"base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'",
        found[1],
    )


def test_every_entry_is_on_the_page_with_all_its_fields() -> None:
    data = data_of(render("run", EVERY_KIND, facts={"seed": "7"}))
    assert (data["title"], data["facts"], data["before"], data["emptied"]) == ("run", [["seed", "7"]], 0, 0)
    row = data["entries"][2]
    fields = dict(itertools.zip_longest(data["fields"][row[0]], row[1:]))
    assert data["kinds"][row[0]] == "message"
    assert (fields["at"], fields["sent"], fields["taken"], fields["asked"]) == (100_000, 80_000, 90_000, 1)
    words = {name: data["texts"][fields[name]] for name in ("sender", "to", "type", "outcome", "result", "cause")}
    assert words == {
        "sender": "shop",
        "to": "stock",
        "type": "reserve",
        "outcome": "ok",
        "result": "3",
        "cause": "11",
    }


def test_a_text_that_comes_often_is_on_the_page_once() -> None:
    page = render("run", [told(at, "one", "other", data={"text": "the very same"}) for at in range(100)])
    assert page.count("the very same") == 1


def test_a_long_text_is_shortened_and_says_how_long_it_was() -> None:
    data = data_of(render("run", [told(1.0, "one", "other", data="x" * 50_000)]))
    assert [text[-23:] for text in data["texts"] if text.startswith('"xxx')] == ["xxx… (50,002 characters)"[-23:]]
    assert max(map(len, data["texts"])) < report.LONGEST_TEXT + 40


def test_of_a_long_run_the_latest_entries_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MOST_ENTRIES", 10)
    data = data_of(render("run", (told(at, "one", "other") for at in range(25))))
    assert data["before"] == 15
    assert [row[1] for row in data["entries"]] == [at * 1_000_000 for at in range(15, 25)]


def test_past_the_size_of_a_page_messages_lose_their_content_and_it_says_how_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report, "MOST_TEXT", 1_000)
    data = data_of(render("run", [told(at, "one", "other", data="x" * 300 + str(at)) for at in range(10)]))
    assert data["emptied"] == 6
    assert len(data["entries"]) == 10
    assert data["texts"][-1] == "(left out)"


@given(st.text(), st.text(), st.recursive(st.text() | st.none() | st.floats(), st.lists, max_leaves=4))
@settings(max_examples=60, deadline=None)
def test_no_text_ever_changes_the_markup_or_the_script_of_the_page(name: str, title: str, content: Any) -> None:
    entry = told(1.0, name, name, type=name, data=content, result=content, trace=name)
    page = render(title, [entry], facts={name: name})
    assert skeleton(page) == skeleton(render("", []))
    assert data_of(page)["facts"] == [[name, name]]


@pytest.mark.parametrize("text", HOSTILE[:-1])
def test_hostile_text_stays_inside_its_element(text: str) -> None:
    page = render(text, [told(1.0, text, text, data={text: text})], facts={text: text})
    assert skeleton(page) == skeleton(render("", []))
    assert f"<title>{html.escape(text.encode('utf-8', 'replace').decode())}</title>" in page
    inside = page.partition('id="data">')[2].partition("</script>\n<script>")[0]
    assert not re.search("[<>&\u2028\u2029]", inside)


def test_what_json_has_no_words_for_is_named_instead() -> None:
    endless: list[Any] = []
    endless.append(endless)
    texts = data_of(render("run", [told(1.0, "one", "other", data=endless, result={("a",): 1})]))["texts"]
    assert "<list that JSON has no words for: ValueError>" in texts
    assert "<dict that JSON has no words for: TypeError>" in texts


def test_a_page_is_written_to_a_file(tmp_path: Path) -> None:
    write(tmp_path / "run.html", "run é", EVERY_KIND)
    assert (tmp_path / "run.html").read_text(encoding="utf-8") == render("run é", EVERY_KIND)


class Work(Message):
    number: int


class Worker(Agent):
    @handles(Work)
    def work(self, message: Work) -> int:
        return message.number * 2


async def test_the_history_of_a_system_makes_a_page() -> None:
    async with ActorSystem() as system:
        history = History(system.bus, system.now)
        await system.spawn(Worker, name="worker")
        assert await system.ask("worker", Work(number=21)) == 42
    data = data_of(render("run", history.entries))
    assert {"worker", "work", "42"} <= set(data["texts"])


# --- in a browser ---


class Page:
    """A page in a browser, asked and steered over the browser's own protocol.

    https://chromedevtools.github.io/devtools-protocol/
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.complaints: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params, **self._session}))
        while True:
            answer = json.loads(await self._socket.recv())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            if answer.get("method") in {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}:
                self.complaints.append(json.dumps(answer["params"]))

    async def open(self, file: Path) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Runtime", "Log", "Page"):
            await self.call(f"{domain}.enable")
        await self.call("Emulation.setDeviceMetricsOverride", width=1400, height=900, deviceScaleFactor=1, mobile=False)
        await self.call("Page.navigate", url=file.as_uri())
        await self.tell(
            "new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))"
        )
        await self.drawn()

    async def drawn(self) -> None:
        """Wait until all is drawn that was to be drawn."""
        await self.tell("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    async def tell(self, expression: str) -> Any:
        told = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def text(self, selector: str) -> str:
        return str(await self.tell(f"document.querySelector({json.dumps(selector)}).innerText.trim()"))

    async def rows(self) -> list[str]:
        told = await self.tell("[...document.querySelectorAll('#list tbody tr')].map(row => row.innerText)")
        return [" ".join(row.split()).partition(" s ")[2] for row in told]

    async def write(self, field: str, text: str) -> None:
        await self.tell(f"document.getElementById('{field}').value = ''; document.getElementById('{field}').focus()")
        await self.call("Input.insertText", text=text)
        await self.drawn()

    async def press(self, selector: str) -> None:
        await self.tell(f"document.querySelector({json.dumps(selector)}).click()")
        await self.drawn()

    async def mouse(self, *kinds: str, x: float, y: float, **more: Any) -> None:
        """Do something with the mouse, at a place of the timeline."""
        corner = await self.tell("(({x, y}) => [x, y])(document.getElementById('lanes').getBoundingClientRect())")
        for kind in kinds:
            button = {} if kind == "mouseWheel" else {"button": "left", "clickCount": 1}
            place = {"x": corner[0] + x, "y": corner[1] + y}
            await self.call("Input.dispatchMouseEvent", type=kind, **place, **button, **more)
        await self.drawn()

    async def picture(self) -> str:
        return str(await self.tell("document.querySelector('#lanes canvas').toDataURL()"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A browser for all tests; the address where it is steered."""
    assert CHROMIUM is not None
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--remote-debugging-port=0",
        f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
    ]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen([CHROMIUM, *flags], stdout=nowhere, stderr=pipe, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "DevTools listening on " in line)
        # What it still says is read, or it would wait for a reader in the end.
        reader = threading.Thread(target=process.stderr.read)
        reader.start()
        yield line.split()[-1]
        process.terminate()
        reader.join()


@asynccontextmanager
async def opened(file: Path, browser: str) -> AsyncIterator[Page]:
    """A page in a browser, under a time limit that turns a hang into a failure."""
    async with asyncio.timeout(PATIENCE):
        async with websocket_connect(browser, proxy=None, compression=None, max_size=None) as socket:
            page = Page(socket)
            await page.open(file)
            yield page


@in_browser
@pytest.mark.slow
async def test_filters_hide_what_they_should(tmp_path: Path, browser: str) -> None:
    write(tmp_path / "run.html", "A run", EVERY_KIND, facts={"seed": "4711"})
    async with opened(tmp_path / "run.html", browser) as page:
        assert await page.text("h1") == "A run"
        numbers = (await page.text("#numbers")).split("\n")
        assert dict(zip(numbers[::2], numbers[1::2], strict=True)).items() >= {"messages": "3", "seed": "4711"}.items()
        assert await page.text("#count") == "all of 13 entries"
        assert len(await page.rows()) == 13
        assert (await page.rows())[2:5] == ["shop → stock reserve 10 ms", "outside → shop order 170 ms", LATE]
        await page.write("actor", "stock")
        assert await page.text("#count") == "4 of 13 entries"
        assert [row.split()[-1] for row in await page.rows()] == ["ms", "fell", "1", "ms"]
        await page.write("actor", "SHO")
        await page.write("type", "order")
        assert await page.rows() == ["outside → shop order 170 ms", LATE]
        await page.write("trace", "aa")
        assert await page.rows() == ["outside → shop order 170 ms"]
        await page.press("#clear")
        assert len(await page.rows()) == 13
        await page.press("#problems")
        assert await page.rows() == [
            LATE,
            "stock failed the shelf fell",
            "shop → nobody audit dead letter: no such actor",
            "shop, stock fault: delay 30 ms",
            "script check failed nobody failed",
        ]
        await page.write("actor", "no such actor")
        assert (await page.rows(), await page.text("#page")) == ([], "no entry fits the filters")
        assert page.complaints == []


@in_browser
@pytest.mark.slow
async def test_choosing_a_row_shows_all_of_its_entry_and_what_belongs_to_it(tmp_path: Path, browser: str) -> None:
    write(tmp_path / "run.html", "A run", EVERY_KIND)
    async with opened(tmp_path / "run.html", browser) as page:
        await page.press("#list tbody tr:nth-child(3)")
        details = " ".join((await page.text("#details dl")).split())
        assert "sender shop to stock type reserve" in details
        assert "result 3 trace aa span 22 cause 11: order to shop ended 0.100000 s" in details
        assert await page.tell("document.querySelectorAll('tr.related').length") == 1
        await page.press("#details dd:nth-last-of-type(4) button")
        assert "took 170 ms, after 10 ms in the mailbox led to reserve to stock" in " ".join(
            (await page.text("#details dl")).split()
        )
        await page.press("#clear")
        assert await page.text("#details dl") == ""
        for row, entry in enumerate(EVERY_KIND, 1):
            await page.tell(f"document.querySelector('#list tbody tr:nth-child({row})').click()")
            assert f"{entry.at:.6f} s" in await page.text("#details dl")
        assert page.complaints == []


@in_browser
@pytest.mark.slow
async def test_the_timeline_is_moved_and_asked_with_keys_wheel_and_mouse(tmp_path: Path, browser: str) -> None:
    write(tmp_path / "run.html", "A run", [told(10.0, "", "worker", sent=0.0, taken=1.0, data={"some": "words"})])
    async with opened(tmp_path / "run.html", browser) as page:
        await page.mouse("mouseMoved", x=400, y=111)
        assert await page.text("#tip") == "outside → worker\njob, 9 s\nat 0.000000 s"
        await page.mouse("mousePressed", "mouseReleased", x=400, y=111)
        assert '"some": "words"' in await page.text("#details dl")
        await page.mouse("mousePressed", "mouseReleased", x=80, y=111)
        assert await page.tell("document.getElementById('actor').value") == "worker"
        await page.tell("document.getElementById('lanes').focus()")
        for key in ("Escape", "+", "ArrowRight", "0", "n"):
            before = await page.picture()
            await page.call("Input.dispatchKeyEvent", type="keyDown", key=key)
            await page.drawn()
            assert await page.picture() != before, key
        await page.press("#clear")
        for more in ({"deltaX": 0, "deltaY": -300}, {"deltaX": 90, "deltaY": 0}):
            before = await page.picture()
            await page.mouse("mouseWheel", x=400, y=111, **more)
            assert await page.picture() != before, more
        before = await page.picture()
        await page.mouse("mousePressed", x=400, y=111)
        await page.mouse("mouseMoved", "mouseReleased", x=500, y=111)
        assert await page.picture() != before
        assert await page.text("#details dl") == "", "a drag chooses nothing"
        assert page.complaints == []


@in_browser
@pytest.mark.slow
async def test_with_a_message_its_trace_its_causes_and_what_it_led_to_are_highlighted(
    tmp_path: Path, browser: str
) -> None:
    entries = [
        told(1.0, "", "first", span="1"),
        told(2.0, "first", "chosen", span="2", cause="1", trace="aa"),
        told(3.0, "first", "sibling", span="3", cause="1"),
        told(4.0, "chosen", "child", span="4", cause="2"),
        told(5.0, "child", "grandchild", span="5", cause="4"),
        told(6.0, "", "companion", span="6", trace="aa"),
        told(7.0, "companion", "stranger", span="7", cause="6", trace="bb"),
    ]
    write(tmp_path / "run.html", "A run", entries)
    async with opened(tmp_path / "run.html", browser) as page:
        await page.press("#list tbody tr:nth-child(2)")
        told_of = await page.tell(
            "[...document.querySelectorAll('tr.related, tr[aria-current]')].map(row => row.innerText)"
        )
        assert [row.split()[4] for row in told_of] == ["first", "chosen", "child", "grandchild", "companion"]


@in_browser
@pytest.mark.slow
async def test_a_mailbox_holds_what_was_sent_and_is_not_yet_taken(tmp_path: Path, browser: str) -> None:
    waits = [("busy", 1, 3), ("busy", 2, 4), ("busy", 3, 5), ("prompt", 1, 2), ("prompt", 2, 3), ("idle", 1, 1)]
    entries = [told(6.0, "", name, sent=float(sent), taken=float(taken)) for name, sent, taken in waits]
    write(tmp_path / "run.html", "A run", entries)
    async with opened(tmp_path / "run.html", browser) as page:
        said = await page.tell("[...document.querySelectorAll('#deepest button')].map(each => each.textContent)")
        assert said == ["busy: at most 2", "prompt: at most 1"]
        assert page.complaints == []


@in_browser
@pytest.mark.slow
async def test_hostile_text_is_shown_and_never_runs(tmp_path: Path, browser: str) -> None:
    entries: list[AnyEntry] = [
        each
        for text in HOSTILE
        for each in (
            told(1.0, text, text, type=text, data={text: text}, result=text, trace=text, span=text, outcome=text),
            Life(at=1.0, actor=text, stage="failed", text=text),
            Injected(at=1.0, fault=text, names=(text, text), text=text),
            Remark(at=1.0, who=text, text=text, passed=False),
        )
    ]
    write(tmp_path / "run.html", HOSTILE[0], entries, facts={text: text for text in HOSTILE})
    async with opened(tmp_path / "run.html", browser) as page:
        assert await page.tell("document.title") == HOSTILE[0]
        assert await page.text("h1") == HOSTILE[0]
        await page.tell(
            f"for (let row = 0; row < {len(entries)}; row++) document.querySelectorAll('tbody tr')[row].click()"
        )
        await page.drawn()
        for down in range(40, 300, 57):
            await page.mouse("mouseMoved", x=400, y=down)
            await page.mouse("mouseMoved", "mousePressed", "mouseReleased", x=80, y=down)
        assert await page.tell("document.title") == HOSTILE[0]
        assert await page.tell("document.querySelectorAll('script').length") == 2
        assert await page.tell("document.querySelectorAll('img').length") == 0
        assert page.complaints == []


@in_browser
@pytest.mark.slow
async def test_a_script_that_is_not_the_page_s_own_is_not_run(tmp_path: Path, browser: str) -> None:
    tampered = render("A run", EVERY_KIND).replace("</body>", "<script>document.title = 'hacked'</script></body>")
    (tmp_path / "run.html").write_text(tampered)
    async with opened(tmp_path / "run.html", browser) as page:
        assert await page.tell("document.title") == "A run"
        assert len(await page.rows()) == len(EVERY_KIND)
        assert len(page.complaints) == 1
        assert "Content Security Policy" in page.complaints[0]


@in_browser
@pytest.mark.slow
async def test_a_run_in_which_nothing_happened_says_so(tmp_path: Path, browser: str) -> None:
    write(tmp_path / "run.html", "A run", [], facts={"seed": "4711"})
    async with opened(tmp_path / "run.html", browser) as page:
        assert (await page.text("#empty")).startswith("Nothing happened")
        assert await page.text("#numbers") == "seed\n4711"
        assert await page.tell("document.querySelector('main').hidden")
        assert page.complaints == []


@in_browser
@pytest.mark.slow
async def test_of_many_actors_the_busiest_have_a_lane_until_all_are_wanted(
    tmp_path: Path, browser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MOST_ENTRIES", 4_000)
    entries = [told(number / 100, "", f"worker-{number % 1_000}", asked=True) for number in range(4_321)]
    write(tmp_path / "run.html", "A run", entries)
    async with opened(tmp_path / "run.html", browser) as page:
        assert await page.text("#notice") == "321 earlier entries are not on this page, which holds the latest 4,000."
        assert await page.text("#hiding span") == "The 60 busiest of 1,001 actors have a lane; 941 are hidden."
        assert await page.text("#page") == "1 to 200 of 4,000"
        await page.press("#later")
        assert await page.text("#page") == "201 to 400 of 4,000"
        short = await page.tell("document.getElementById('lanes').scrollHeight")
        await page.press("#hiding button")
        assert await page.text("#hiding span") == "All 1,001 actors have a lane, in order of appearance."
        assert await page.tell("document.getElementById('lanes').scrollHeight") > 10 * short
        await page.write("actor", "worker-5")
        assert await page.text("#count") == "4 of 4,000 entries"
        assert page.complaints == []
