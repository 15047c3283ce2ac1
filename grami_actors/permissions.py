"""Who may do what: rules over principals, message types, destinations and topics. Pure. Floor 2.

Rule 1: rules only ever add. Without any, everything is allowed but ``admin.*``; with one, what none allows is refused.
Rule 2: agents and tools are principals too (:class:`Identity`). What one sends for a client is asked for both: the
        agent by its own name, the client by its own or by a rule with ``through``. So neither gains by the other.
Rule 3: names, scopes, types and destinations are globs; topics are in the language of topics, and nothing is in both.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

import msgspec

from grami_actors.errors import ConfigError
from grami_actors.principals import ADMIN, EVERYTHING, Principal
from grami_actors.topics import Topics

AGENT, TOOL = "agent:", "tool:"
"""How the names of identities begin. A client whose credential has such a name is allowed nothing by rules."""

MOST_ANSWERS = 10_000
"""Answers that are kept; one more, and all are forgotten."""

LONGEST_QUESTION = 256
"""Characters; clients choose what they ask for, so the answer to a longer one is not kept."""

_GLOBS = ("principals", "scopes", "send", "to", "through")
_TOPICS = ("subscribe", "publish")


class Identity(Principal, frozen=True):
    """Who an agent or a tool is: ``agent:NAME``, ``tool:NAME``. The system makes it, no credential does."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What some principals may do.

    ``subscribe`` and ``publish`` hold patterns of topics (:mod:`grami_actors.topics`): ``*`` is one word and a last
    ``>`` one or more. All other fields hold globs: ``*`` is any text, ``?`` one character, and everything else itself,
    ``[`` too; case matters, and the whole name must match.

    Attributes:
        principals: names of principals; an agent is ``agent:NAME`` (all instances and children of it), a tool
            ``tool:NAME``. ``*`` means these too.
        scopes: with any of these scopes; all principals of these names, if none is given. Agents and tools have none.
        send: message types that they may send: ``tool_call`` to tools, ``generate`` to the model, and the name of the
            class in snake_case for Python objects that are no messages.
        to: destinations that they may send these types to, by the name that is addressed: an instance of a pool
            (``writer-2``) is another name than its pool (``writer``). A message without one is addressed to whatever
            handles its type.
        through: agents that may do so on their behalf (``agent:NAME``); empty for they themselves.
        subscribe: topics that they may subscribe to.
        publish: topics that they may publish to; agents get only what ``send`` and ``to`` allow.
        admin: whether they may use ``admin.*``.
    """

    principals: tuple[str, ...] = ("*",)
    scopes: tuple[str, ...] = ()
    send: tuple[str, ...] = ()
    to: tuple[str, ...] = ("*",)
    through: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    admin: bool = False


class Permissions:
    """Answers questions about rules. Without any rule everything is allowed but ``admin.*``; else only what one allows.

    A principal with the scope ``*`` is allowed everything. May be asked from any thread.

    Args:
        rules: in any order; they only ever add.

    Raises:
        ConfigError: a rule that cannot be meant so; says which one, and why.
    """

    def __init__(self, rules: tuple[Rule, ...] = ()) -> None:
        self.rules = tuple(rules)
        for number, rule in enumerate(self.rules, 1):
            _check(rule, f"rule {number} of {len(self.rules)}")
        self._grants = tuple(map(_Grant, self.rules))
        self._answers: dict[object, bool] = {}

    def may_send_type(self, principal: Principal, message_type: str) -> bool:
        """Whether there is any destination that it may send this type to."""
        return self._free(principal) or self._ask(
            principal, "", ("type", message_type), lambda grant: grant.anywhere and grant.send(message_type)
        )

    def may_send(self, principal: Principal, message_type: str, to: str, *, through: str = "") -> bool:
        """Whether it may send this type there; ``through`` names the agent that does so on its behalf."""
        return self._free(principal) or self._ask(
            principal, through, ("send", message_type, to), lambda grant: grant.send(message_type) and grant.to(to)
        )

    def may_subscribe(self, principal: Principal, pattern: str, *, through: str = "") -> bool:
        """Whether it may hear all that a pattern of topics can match: one pattern of a rule must match all of it.

        What is no pattern matches nothing, so it gets any answer.
        """
        words = tuple(pattern.split("."))
        return self._free(principal) or self._ask(
            principal, through, ("subscribe", pattern), lambda grant: _any_covers(grant.subscribe, words)
        )

    def may_publish(self, principal: Principal, topic: str, *, through: str = "") -> bool:
        """Whether it may publish to a topic. What is no topic gets any answer."""
        words = tuple(topic.split("."))
        return self._free(principal) or self._ask(
            principal, through, ("publish", topic), lambda grant: _any_covers(grant.publish, words)
        )

    def may_administer(self, principal: Principal) -> bool:
        """Whether it may use ``admin.*``: it takes the scope, or a rule."""
        if ADMIN in principal.scopes or EVERYTHING in principal.scopes:
            return True
        return self._ask(principal, "", ("admin",), lambda grant: grant.admin)

    def _free(self, principal: Principal) -> bool:
        return not self._grants or EVERYTHING in principal.scopes

    def _ask(
        self, principal: Principal, through: str, question: tuple[str, ...], allows: Callable[[_Grant], bool]
    ) -> bool:
        key = (type(principal), principal.name, principal.scopes, through, question)
        answer = self._answers.get(key)
        if answer is None:
            answer = any(grant.binds(principal, through) and allows(grant) for grant in self._grants)
            if sum(map(len, question)) <= LONGEST_QUESTION:
                if len(self._answers) >= MOST_ANSWERS:
                    self._answers = {}
                self._answers[key] = answer
        return answer


class _Grant:
    """A rule, compiled."""

    def __init__(self, rule: Rule) -> None:
        self._principals = globs(rule.principals)
        self._scopes = globs(rule.scopes) if rule.scopes else None
        self._through = globs(rule.through) if rule.through else None
        self.send = globs(rule.send)
        self.to = globs(rule.to)
        self.anywhere = bool(rule.to)
        self.subscribe = tuple(tuple(pattern.split(".")) for pattern in rule.subscribe)
        self.publish = tuple(tuple(pattern.split(".")) for pattern in rule.publish)
        self.admin = rule.admin

    def binds(self, principal: Principal, through: str) -> bool:
        """Whether the rule is for this principal, on this way."""
        if principal.name.startswith((AGENT, TOOL)) and not isinstance(principal, Identity):
            return False
        if bool(through) != (self._through is not None) or (self._through is not None and not self._through(through)):
            return False
        return self._principals(principal.name) and (self._scopes is None or any(map(self._scopes, principal.scopes)))


def globs(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """A function that says whether a text matches any of these, in time linear in the text.

    Args:
        patterns: ``*`` is any text, ``?`` one character, and everything else itself; case matters.
    """
    if "*" in patterns or not patterns:
        everything = bool(patterns)
        return lambda _: everything
    # A set of one character is how fnmatch takes it for itself.
    match = re.compile("|".join(fnmatch.translate(pattern.replace("[", "[[]")) for pattern in patterns)).match
    return lambda text: match(text) is not None


def _any_covers(patterns: tuple[tuple[str, ...], ...], asked: tuple[str, ...]) -> bool:
    return any(_covers(pattern, asked) for pattern in patterns)


def _covers(pattern: tuple[str, ...], asked: tuple[str, ...]) -> bool:
    """Whether a pattern of topics matches every topic that another one can match; both in words."""
    for place, word in enumerate(pattern):
        if place == len(asked):
            return False
        if word == ">":
            return True
        if asked[place] == ">" or word not in {"*", asked[place]}:
            return False
    return len(pattern) == len(asked)


def _check(rule: Rule, which: str) -> None:
    for field in (*_GLOBS, *_TOPICS):
        patterns = getattr(rule, field)
        if not isinstance(patterns, tuple) or not all(isinstance(each, str) and each for each in patterns):
            raise ConfigError(f"{which}: {field} is a list of patterns, none of them empty, not {patterns!r}")
    trial: Topics[int] = Topics()
    for field in _TOPICS:
        for pattern in getattr(rule, field):
            try:
                trial.subscribe(pattern, 0)
            except ValueError as error:
                raise ConfigError(f"{which}: {field}: {error}") from None
    for name in rule.through:
        if not name.startswith((AGENT, TOOL, "*", "?")):
            raise ConfigError(f"{which}: through names agents, as in {AGENT}{name}, not {name!r}")
    if rule.through and rule.admin:
        raise ConfigError(f"{which}: admin.* is for clients themselves, so no agent uses it on their behalf")
