"""A run as a Mermaid diagram: who comes first, what stands where, and that nothing in it is misread."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors import ActorSystem, Agent, Message, Reject, RestartPolicy, handles
from grami_actors.history import AnyEntry, History, Injected, Life, Lost, Remark, Told
from grami_actors.recording.diagram import LONGEST_LABEL, mermaid


def told(sender: str, to: str, sent: float, at: float, **more: Any) -> Told:
    return Told(**{"sender": sender, "to": to, "sent": sent, "taken": sent, "at": at, "type": "job", **more})


def lines(*entries: AnyEntry, hide: tuple[str, ...] = ()) -> list[str]:
    """The lines below the participants, with the names of those instead of their marks."""
    text = mermaid(entries, hide=hide)
    names = dict(re.findall(r"participant (p\d+) as (.*)", text))
    body = [line.strip() for line in text.splitlines()[1:] if "participant" not in line]
    return [re.sub(r"((?<=--x)|\b)p\d+(?=[-,:])", lambda found: names[found[0]], line) for line in body]


def test_asks_tells_answers_and_errors_have_arrows_of_their_own() -> None:
    assert mermaid(
        [
            told("shop", "stock", 1, 2, type="reserve", asked=True, result={"left": 3}),
            told("shop", "cashier", 3, 4, type="pay", asked=True, outcome="TIMEOUT"),
            told("", "shop", 0, 5, type="order", asked=True),
            told("shop", "auditor", 6, 7, type="audit"),
        ]
    ) == (
        "sequenceDiagram\n"
        "    participant p0 as client\n"
        "    participant p1 as shop\n"
        "    participant p2 as stock\n"
        "    participant p3 as cashier\n"
        "    participant p4 as auditor\n"
        "    p0->>p1: order\n"
        "    p1->>p2: reserve\n"
        '    p2-->>p1: {"left": 3}\n'
        "    p1->>p3: pay\n"
        "    p3--xp1: TIMEOUT\n"
        "    p1-->>p0: done\n"
        "    p1-)p4: audit\n"
    )


def test_failures_restarts_faults_and_dead_letters_are_noted() -> None:
    assert lines(
        Injected(at=0, fault="delay", names=("shop", "stock"), text="30 ms"),
        Injected(at=0.5, fault="crash", names=("stock",)),
        told("shop", "stock", 0, 1, outcome="AGENT_CRASHED"),
        Life(at=1, actor="stock", stage="failed", text="it fell"),
        Life(at=2, actor="stock", stage="restarted", text="restart 1"),
        Life(at=3, actor="stock", stage="suspended"),
        Life(at=4, actor="stock", stage="stopped"),
        Lost(at=5, sender="shop", to="nobody", type="audit", reason="unknown"),
        Remark(at=6, who="script", text="well"),
    ) == [
        "Note over shop,stock: fault: delay 30 ms",
        "shop-)stock: job",
        "Note over stock: fault: crash",
        "Note over stock: job: AGENT_CRASHED",
        "Note over stock: failed: it fell",
        "Note over stock: restarted: restart 1",
        "Note over stock: suspended",
        "shop--xnobody: audit (dead letter: unknown)",
    ]


def test_at_one_moment_of_virtual_time_nothing_comes_before_its_cause() -> None:
    assert lines(
        told("b", "c", 0, 0, asked=True, result=1, span="3", cause="2"),
        told("a", "b", 0, 0, asked=True, result=2, span="2", cause="1"),
        told("", "a", 0, 0, asked=True, result=3, span="1"),
    ) == ["client->>a: job", "a->>b: job", "b->>c: job", "c-->>b: 1", "b-->>a: 2", "a-->>client: 3"]


def test_whoever_is_hidden_is_folded_into_whoever_caused_it() -> None:
    entries = (
        told("", "connection-1", 0, 1, type="FrameCame", span="1"),
        told("connection-1", "router", 2, 3, type="Forward", cause="1", span="2"),
        told("helper", "writer", 5, 6, asked=True, result="text", cause="4"),
        told("boss", "helper", 4, 7, asked=True, result="text", cause="3", span="4"),
        told("connection-1", "boss", 3, 8, asked=True, result="text", cause="2", span="3"),
        Life(at=9, actor="helper", stage="failed"),
        Lost(at=10, sender="helper", to="writer", type="late", reason="stopped"),
        Injected(at=11, fault="cut", names=("connection-1", "boss")),
    )
    assert lines(*entries, hide=("router", "connection-*", "helper")) == [
        "client->>boss: job",
        "boss->>writer: job",
        "writer-->>boss: text",
        "boss-->>client: text",
        "client--xwriter: late (dead letter: stopped)",
        "Note over boss: fault: cut",
    ]


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("the end; END", "the #101;nd#59; #69;ND"),
        ("wrap: nowrap:", "#119;rap: #110;owrap:"),
        ("# %% <br> &amp;", "#35; #37;#37; #60;br#62; #38;amp#59;"),
        ("$$y$$ a@{b} \\n", "#36;#36;y#36;#36; a#64;{b} #92;n"),
        ("one\ntwo\u2028three\x00four", "one two three four"),
        ("bends wraps", "bends wraps"),
    ],
)
def test_what_mermaid_would_misread_is_escaped(said: str, written: str) -> None:
    text = mermaid([told(said, "b", 0, 1, type=said)])
    assert f"participant p0 as {written}\n" in text
    assert f"p0-)p1: {written}\n" in text


@given(st.lists(st.tuples(st.text(), st.text(), st.text(), st.booleans()), max_size=6))
def test_no_text_ever_makes_a_line_or_begins_a_comment_or_a_statement(said: list[tuple[str, str, str, bool]]) -> None:
    entries = [
        told(sender, to, number, number + 0.5, type=type_, asked=asked, result=type_)
        for number, (sender, to, type_, asked) in enumerate(said)
    ]
    text = mermaid(entries)
    head, *rest = text.splitlines()
    assert head == "sequenceDiagram"
    arrows = [line for line in rest if "participant" not in line.split(" ")[4:5]]
    assert len(arrows) == sum(2 if asked else 1 for *_, asked in said)
    for line in rest:
        assert re.fullmatch(r"    (participant p\d+ as |p\d+(->>|-\)|-->>)p\d+: )([^;#%<>$@\\]|#\d+;)+", line), line
        assert not re.search(r"(?i)\bend\b", line.partition(":")[2])
    assert text == mermaid(entries), "the same entries give the same text"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)), max_size=12))
def test_every_message_has_its_arrow_and_every_ask_its_answer(given: list[tuple[int, int, int]]) -> None:
    entries = [
        told(f"a{cause}", f"a{took}", sent, sent + took, asked=True, span=str(number), cause=str(number - cause))
        for number, (sent, took, cause) in enumerate(given)
    ]
    text = mermaid(entries)
    assert text.count("->>") == 2 * len(entries)
    assert text.count("-->>") == len(entries)


def test_long_texts_are_shortened() -> None:
    (line,) = lines(told("a", "b", 0, 1, type="word " * 1_000))
    assert len(line.partition(": ")[2]) <= LONGEST_LABEL
    assert line.endswith("…")


@pytest.mark.parametrize("text", ["", " \n", "\u2028"])
def test_a_text_of_which_nothing_is_left_still_makes_a_line(text: str) -> None:
    assert lines(told("a", "b", 0, 1, type=text)) == ["a-)b: #160;"]


def test_a_run_in_which_nothing_happened_is_an_empty_diagram() -> None:
    assert mermaid([]) == "sequenceDiagram\n"


class Order(Message):
    item: str


class Reserve(Message):
    item: str


class Shop(Agent):
    @handles(Order)
    async def order(self, message: Order) -> str:
        left = await self.ask("stock", Reserve(message.item))
        return f"sold, {left} left"


class Stock(Agent, restart=RestartPolicy(shortest=0.0, longest=0.0)):
    @handles(Reserve)
    def reserve(self, message: Reserve) -> int:
        if message.item == "salt":
            raise Reject("OUT_OF_STOCK", "no salt")
        return 2


async def test_the_history_of_a_system_makes_a_diagram() -> None:
    async with ActorSystem() as system:
        history = History(system.bus, system.now)
        await system.spawn(Shop, name="shop")
        await system.spawn(Stock, name="stock")
        assert await system.ask("shop", Order(item="tea")) == "sold, 2 left"
        with pytest.raises(Exception, match="no salt"):
            await system.ask("shop", Order(item="salt"))
    assert lines(*history.entries) == [
        "client->>shop: order",
        "shop->>stock: reserve",
        "stock-->>shop: 2",
        "shop-->>client: sold, 2 left",
        "client->>shop: order",
        "shop->>stock: reserve",
        "stock--xshop: OUT_OF_STOCK",
        "shop--xclient: OUT_OF_STOCK",
    ]
