"""How agents work together: patterns over the public API, usable from any agent. Floor 12."""

from __future__ import annotations

from grami_actors.coordination.asks import Outcome
from grami_actors.coordination.blackboard import (
    Blackboard,
    DeleteEntry,
    Entry,
    EntryChanged,
    ListEntries,
    ReadEntry,
    WriteEntry,
    Written,
    update,
)
from grami_actors.coordination.contract_net import Announce, Award, Bid, Bidder, Refuse, contract, lowest
from grami_actors.coordination.flow import Each, gather, map_reduce, parallel, pipeline
from grami_actors.coordination.handoff import handoff
from grami_actors.coordination.journal import Journal
from grami_actors.coordination.people import (
    Answer,
    AnswerQuestion,
    ListQuestions,
    People,
    Question,
    QuestionNews,
    WithdrawQuestion,
    ask_person,
)
from grami_actors.coordination.retries import Retries
from grami_actors.coordination.saga import SagaFailed, Sagas, Step, UndoSaga, saga
from grami_actors.coordination.talks import (
    Judge,
    NextSpeaker,
    Rounds,
    Rules,
    Speak,
    Turn,
    Verdict,
    debate,
    group_chat,
)
from grami_actors.coordination.votes import Ballot, Poll, Rule, Tally, count, vote

__all__ = [
    "Announce",
    "Answer",
    "AnswerQuestion",
    "Award",
    "Ballot",
    "Bid",
    "Bidder",
    "Blackboard",
    "DeleteEntry",
    "Each",
    "Entry",
    "EntryChanged",
    "Journal",
    "Judge",
    "ListEntries",
    "ListQuestions",
    "NextSpeaker",
    "Outcome",
    "People",
    "Poll",
    "Question",
    "QuestionNews",
    "ReadEntry",
    "Refuse",
    "Retries",
    "Rounds",
    "Rule",
    "Rules",
    "SagaFailed",
    "Sagas",
    "Speak",
    "Step",
    "Tally",
    "Turn",
    "UndoSaga",
    "Verdict",
    "WithdrawQuestion",
    "WriteEntry",
    "Written",
    "ask_person",
    "contract",
    "count",
    "debate",
    "gather",
    "group_chat",
    "handoff",
    "lowest",
    "map_reduce",
    "parallel",
    "pipeline",
    "saga",
    "update",
    "vote",
]
