"""`create_react_agent`, whose tool calls take the whole state along.

Version 2, the default, hands each call to a task of its own, in a Send that holds all messages so far.  So what
is written grows with the square of the run, although next to nothing of it is new.
"""

import warnings

from langgraph.prebuilt import create_react_agent
from langgraph.warnings import LangGraphDeprecatedSinceV10

import script
import scripted
from scripted import Run, ScriptedModel

THREAD = "react"


def agent(supersteps: int, seed: int) -> Run:
    """The research agent of the replays, as a prebuilt one."""
    said = script.research(supersteps, seed)
    lines = scripted.of_script(said)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangGraphDeprecatedSinceV10)  # deprecated, and still in wide use
        graph = create_react_agent(ScriptedModel(answers=lines.answers), scripted.tools(lines.results), version="v2")
    turn = said.turns[0]
    return Run(graph, THREAD, turn.question.model_copy(update={"id": turn.question_id}))
