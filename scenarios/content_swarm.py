"""A content swarm: a strategist plans, three writers draft at the same time, a critic picks the best draft.

Play it:      grami run scenarios/content_swarm.py
Simulate it:  grami run scenarios/content_swarm.py --simulate
Break it:     grami run scenarios/content_swarm.py whatever_happens --simulate --faults crash
Serve it:     grami serve scenarios/content_swarm.py
Ask it:       grami send content_request platform=instagram niche=coffee --stream

The text comes from the swarm's language model: a small one that runs here, or the one that GRAMI_MODEL names.
With GRAMI_MODEL=scripted the answers are fixed, and no model is needed. The small model only knows how to go
on with a text, so every prompt is a few finished examples and the beginning of one more.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import zlib
from functools import partial
from typing import Annotated, Literal

import msgspec

from grami_actors import (
    Agent,
    GramiError,
    Message,
    Prompt,
    ScriptedModel,
    Swarm,
    handles,
    model_from_environment,
    tool,
)
from grami_actors.scenario import Play, PlayClient, scenario

PATIENCE = 300.0
"""Seconds a client of the scenarios waits: the small model may share a busy machine."""

LIMITS = {"twitter": 280, "tiktok": 300, "instagram": 2200, "facebook": 2200, "linkedin": 3000}
"""How many characters a platform takes; others get the smallest."""

Style = Literal["best", "start", "mood"]

# --- what is said --------------------------------------------------------------------------------------------


class ContentRequest(Message, tag="content_request"):
    """A client wants something to publish."""

    platform: str
    niche: str = "general"
    content_type: str = "post"


class Draft(Message):
    """The strategist wants one draft."""

    niche: str
    angle: str
    style: Style
    seed: int


class Review(Message):
    """The strategist wants to know which draft is best."""

    niche: str
    limit: int
    drafts: Annotated[list[str], msgspec.Meta(min_length=1)]


class ContentPost(msgspec.Struct):
    """What the client gets."""

    text: str
    hashtags: list[str]


class Verdict(msgspec.Struct):
    """What the critic thinks: the number of the best draft, and the score of each from 0 to 1."""

    best: int
    scores: list[float]


# --- how the model is asked ----------------------------------------------------------------------------------

ANGLES = """\
Topic: baking
Three angles:
["the smell of fresh bread", "easy cakes for beginners", "baking with children"]

Topic: running
Three angles:
["quiet morning runs", "choosing the right shoes", "training for a first race"]

Topic: books
Three angles:
["reading before bed", "stories that changed the world", "book clubs with friends"]

Topic: music
Three angles:
["learning a first instrument", "songs for long drives", "playing in a band"]

Topic: {niche}
Three angles:
"""

ANGLES_SCHEMA = {
    "type": "array",
    "items": {"type": "string", "minLength": 8, "maxLength": 60},
    "minItems": 3,
    "maxItems": 3,
}

FALLBACK = ("first steps", "small habits that last", "what nobody tells you")

# How a text of a style begins, and examples of how it goes on: topic, angle, rest.
STYLES = {
    "best": (
        "The best thing about {niche} is",
        (
            (
                "baking",
                "the smell of fresh bread",
                "the smell that fills the whole house. Start a small dough tonight.",
            ),
            (
                "running",
                "quiet morning runs",
                "the quiet hour before the city wakes up. Put your shoes next to the door.",
            ),
            ("books", "reading before bed", "that a good story waits for you every night. Ten pages are enough."),
            ("music", "playing in a band", "that everyone can join in. Sing one song with your friends this week."),
        ),
    ),
    "start": (
        "New to {niche}? Start with",
        (
            (
                "baking",
                "easy cakes for beginners",
                "a simple sponge cake. You only need flour, eggs and a little time.",
            ),
            ("running", "training for a first race", "ten easy minutes around the block. Walk when you are tired."),
            ("books", "book clubs with friends", "a short book that makes you laugh. Then lend it to a friend."),
            ("music", "learning a first instrument", "one song that you love. Learn three chords and play it."),
        ),
    ),
    "mood": (
        "{Niche} is my favorite way to",
        (
            (
                "baking",
                "the smell of fresh bread",
                "make the house smell like home. One warm loaf and the day is saved.",
            ),
            ("running", "quiet morning runs", "start the day. One quiet street and a clear head."),
            ("books", "reading before bed", "travel without leaving the sofa. One good book and a cup of tea."),
            ("music", "songs for long drives", "say what words cannot. One song and everyone smiles."),
        ),
    ),
}

PLANS: dict[str, tuple[Style, Style, Style]] = {"caption": ("mood", "mood", "best"), "tip": ("start", "start", "best")}
"""Which styles are tried for a content type; one of each for those not named."""


def capitalised(text: str) -> str:
    """The text with a large first letter; the others stay as they are."""
    return text[:1].upper() + text[1:]


def draft_prompt(draft: Draft) -> tuple[str, str]:
    """The prompt, and the beginning of the text that the model is to go on with."""
    opening, examples = STYLES[draft.style]
    shots = [
        f"Topic: {niche}, {angle}\nText: {opening.format(niche=niche, Niche=capitalised(niche))} {rest}\n\n"
        for niche, angle, rest in examples
    ]
    begin = opening.format(niche=draft.niche, Niche=capitalised(draft.niche))
    return f"{''.join(shots)}Topic: {draft.niche}, {draft.angle}\nText: {begin}", begin


# --- tools ---------------------------------------------------------------------------------------------------


@tool(lane="thread", timeout=5, concurrency=4)
def hashtags(niche: str, angle: str = "", limit: int = 4) -> list[str]:
    """Hashtags for a niche, the most general first."""
    words = re.findall(r"\w+", niche)
    whole = "".join(word.capitalize() for word in words)
    longer = [word.capitalize() for word in re.findall(r"\w{5,}", angle)]
    found = [whole, *longer, f"{whole}Tips", f"{whole}Life", f"Love{whole}"]
    return [f"#{tag}" for tag in dict.fromkeys(found) if tag][:limit]


@tool(lane="loop", timeout=5)
def score(text: str, niche: str, limit: int) -> float:
    """How good a draft is, from 0 to 1: long enough, within the limit, whole sentences, nothing repeated or copied."""
    words = re.findall(r"[\w']+", text.lower())
    if not words or len(text) > limit:
        return 0.0
    length = min(1.0, len(words) / 18)
    variety = len(set(words)) / len(words)
    whole = 1.0 if text.rstrip().endswith((".", "!", "?")) else 0.4
    topic = 1.0 if niche.lower() in text.lower() else 0.6
    examples = [rest for _, shots in STYLES.values() for *_, rest in shots]
    copied = any(sentence in text for rest in examples for sentence in rest.split(". ") if len(sentence) > 20)
    return round(length * variety * whole * topic * (0.3 if copied else 1.0), 3)


# --- agents --------------------------------------------------------------------------------------------------


class Strategist(Agent, concurrency=32):
    """Plans three angles, has each drafted, and publishes the draft that the critic picks."""

    @handles(ContentRequest)
    async def create(self, request: ContentRequest) -> ContentPost:
        niche = request.niche.strip() or "general"
        seed = zlib.crc32(f"{request.platform}/{niche}/{request.content_type}".encode())
        limit = LIMITS.get(request.platform.lower(), min(LIMITS.values()))
        self.progress(0.05, f"planning {niche} for {request.platform}")
        angles = await self.plan(niche, seed)
        styles = PLANS.get(request.content_type, ("best", "start", "mood"))
        self.progress(0.25, "drafting: " + ", ".join(angles))
        asked = [
            self.ask("writer", Draft(niche, angle, style, seed + number))
            for number, (angle, style) in enumerate(zip(angles, styles, strict=True))
        ]
        # A writer that fails costs its draft, not the post.
        drafts = await asyncio.gather(*asked, return_exceptions=True)
        written = [(angle, text) for angle, text in zip(angles, drafts, strict=True) if isinstance(text, str)]
        if not written:
            raise next(failure for failure in drafts if isinstance(failure, BaseException))
        self.progress(0.8, "choosing")
        verdict = await self.ask("critic", Review(niche, limit, [text for _, text in written]))
        angle, text = written[verdict.best]
        tags = await self.call(hashtags, niche=niche, angle=angle)
        self.progress(1.0, "done")
        return ContentPost(text, tags)

    async def plan(self, niche: str, seed: int) -> list[str]:
        """Three angles on a niche, from the model; a small one does not always find three different ones."""
        for attempt in range(3):
            text = ANGLES.format(niche=niche)
            prompt = Prompt(text=text, schema=ANGLES_SCHEMA, seed=seed + attempt, temperature=0.3, max_tokens=96)
            with contextlib.suppress(GramiError, msgspec.DecodeError):
                angles = msgspec.json.decode(await self.generate(prompt), type=list[str])
                copied = any(angle in ANGLES for angle in angles)
                if not copied and len({angle.lower() for angle in angles}) == len(angles) == len(FALLBACK):
                    return angles
        return list(FALLBACK)


class Writer(Agent, instances=3):
    """Writes a draft, and shows it while it is written."""

    @handles(Draft)
    async def write(self, draft: Draft) -> str:
        prompt, begin = draft_prompt(draft)
        self.emit({"from": self.name, "text": begin})
        pieces = [begin]
        asked = Prompt(text=prompt, seed=draft.seed, temperature=0.3, max_tokens=48, stop=("\n", "<"))
        async for piece in self.generate(asked):
            pieces.append(piece)
            self.emit({"from": self.name, "text": piece})
        return "".join(pieces).strip()


class Critic(Agent, concurrency=8):
    """Scores drafts with a tool, and picks the best."""

    @handles(Review)
    async def review(self, review: Review) -> Verdict:
        calls = [self.call(score, text=text, niche=review.niche, limit=review.limit) for text in review.drafts]
        scores = await asyncio.gather(*calls)
        return Verdict(best=scores.index(max(scores)), scores=scores)


# --- answers for GRAMI_MODEL=scripted: what a prompt ends with, and the answer -------------------------------

SCRIPT = ScriptedModel(
    {
        "Three angles:": '["first steps at home", "small habits that last", "what nobody tells you"]',
        "Topic: coffee\nThree angles:": '["brewing at home", "slow mornings with a cup", "beans from far away"]',
        "Topic: remote work\nThree angles:": '["calm calls with the team", "a desk of your own", "ending on time"]',
        "Topic: gardening\nThree angles:": '["tomatoes on the balcony", "quiet evenings", "seeds in early spring"]',
        "The best thing about": " how little you need to begin. Small steps are easy to repeat.",
        "New to": " one small thing that you can finish today. Tomorrow you will want the next one.",
        "is my favorite way to": " come back to myself. One quiet hour and the day looks different.",
        "The best thing about coffee is": " the smell before the first sip. Grind the beans just before you brew.",
        "New to coffee? Start with": " a simple filter and good water. Taste it before you add anything.",
        "Coffee is my favorite way to": " begin slowly. One warm cup, an open window and no hurry at all.",
        "The best thing about remote work is": " that your day is yours to arrange. Begin it with the hardest task.",
        "New to remote work? Start with": " a fixed hour to stop. The work will still be there in the morning.",
        "The best thing about gardening is": " that it grows while you sleep. Look again at dawn.",
        "Gardening is my favorite way to": " slow down. Two hands in the soil and the evening takes its time.",
    }
)

swarm = Swarm(
    agents=[Strategist, Writer, Critic],
    tools=[hashtags, score],
    model=partial(model_from_environment, scripted=SCRIPT),
)

# --- scenarios -----------------------------------------------------------------------------------------------


def check_post(play: Play, who: str, post: dict[str, object], niche: str, limit: int) -> None:
    """What must be true of every post."""
    text, tags = str(post.get("text")), post.get("hashtags")
    fits = set(post) == {"text", "hashtags"} and niche.lower() in text.lower() and 20 < len(text) <= limit
    play.check(f"{who} has a text about {niche} that fits into {limit} characters", fits, str(post))
    good = isinstance(tags, list) and 0 < len(tags) == len(set(tags)) and all(str(tag)[0] == "#" for tag in tags)
    play.check(f"{who} has hashtags, no two the same", good, str(tags))


async def ask_and_check(play: Play, client: PlayClient, platform: str, niche: str, content_type: str) -> None:
    """One client asks for one post, watches it being written, and checks it."""
    request = ContentRequest(platform=platform, niche=niche, content_type=content_type)
    post, frames = await client.write(request, timeout=PATIENCE)
    check_post(play, client.name, post, niche, LIMITS[platform])
    chunks = [frame.data for frame in frames if frame.type == "response.chunk"]
    writers = {chunk["from"] for chunk in chunks}
    drafts = {name: "".join(chunk["text"] for chunk in chunks if chunk["from"] == name) for name in writers}
    seen = len(writers) > 1 and any(post["text"] in draft for draft in drafts.values())
    play.check(f"{client.name} saw several writers at work, and the text that was chosen", seen, str(drafts))


@scenario
async def three_clients_at_once(play: Play) -> None:
    """Three clients, three platforms, at the same time."""
    alice, bob, carol = [await play.client(name) for name in ("alice", "bob", "carol")]
    await asyncio.gather(
        ask_and_check(play, alice, "instagram", "coffee", "post"),
        ask_and_check(play, bob, "linkedin", "remote work", "tip"),
        ask_and_check(play, carol, "twitter", "gardening", "caption"),
    )


@scenario
async def a_writer_dies(play: Play) -> None:
    """A writer is killed in the middle of a draft: it is restarted, and the client still gets its post."""
    dave = await play.client("dave")
    post, killed = None, ""
    async for frame in dave.stream(ContentRequest(platform="instagram", niche="coffee"), timeout=PATIENCE):
        if frame.type == "response.chunk" and not killed:
            killed = frame.data["from"]
            play.kill(killed)
        post = frame.data
    play.check("a writer was killed", killed)
    check_post(play, "dave", post, "coffee", LIMITS["instagram"])
    again = await dave.request(Draft("coffee", "brewing at home", "start", 7), to=killed, timeout=PATIENCE)
    play.check(f"{killed} writes again under the same name", again.startswith("New to coffee"), again)


@scenario
async def what_goes_wrong_is_said(play: Play) -> None:
    """Wrong requests get a code and a reason, and nobody else notices."""
    erin = await play.client("erin")
    busy = play.faults.stall("strategist", 60.0)
    for code, fields in {
        "VALIDATION_FAILED": {"niche": "coffee"},
        "DEADLINE_EXCEEDED": {"platform": "instagram", "timeout": 0.05},
        "DESTINATION_NOT_FOUND": {"platform": "instagram", "to": "nobody"},
    }.items():
        try:
            await erin.request("content_request", **fields)
        except GramiError as error:
            play.check(f"{code} is answered", error.error_code == code, str(error))
        else:
            play.check(f"{code} is answered", condition=False)
    busy.undo()
    post = await erin.request("content_request", platform="instagram", niche="coffee", timeout=PATIENCE)
    check_post(play, "erin", post, "coffee", LIMITS["instagram"])


@scenario
async def whatever_happens(play: Play) -> None:
    """Under any faults a client gets a whole post, or an error that says why; without faults, a post."""
    clients = [await play.client(name) for name in ("frank", "grace")]
    asked = [client.start(ContentRequest("instagram", "coffee"), timeout=PATIENCE) for client in clients]
    for client, pending in zip(clients, asked, strict=True):
        try:
            post = await pending
        except GramiError as error:
            struck = play.transcript.faults()
            play.check(f"{client.name} is told what went wrong", error.error_code and error.message)
            play.check(f"{client.name} is refused for a fault, not without one", struck, str(error))
        else:
            check_post(play, client.name, post, "coffee", LIMITS["instagram"])
    play.check("both know it in time", play.now() <= PATIENCE + 1.0, f"{play.now():.3g} s")
