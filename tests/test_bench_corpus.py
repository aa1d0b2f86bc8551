"""What the dictionary is trained on says nothing, and nothing of the benchmark stands in the dictionary."""

import random
import re
import uuid
from datetime import datetime

import msgspec
import pytest

import corpus
import script
from dictionary import names_of_benchmark, words_of_prose
from prose import Prose
from providers import PROVIDERS
from stepwell import dictionary
from wordless import Source
from workloads import SEED

CHECKPOINT = "1f0e3a5c-7b2d-6c41-8003-9a5e4d7f2b16"


def test_nothing_of_the_benchmark_stands_in_the_dictionary() -> None:
    """No longer word of its prose, and none of its names of models, tools, nodes and threads."""
    assert words_of_prose(dictionary.load()) == []
    assert names_of_benchmark(dictionary.load()) == []


def test_what_stands_there_is_found() -> None:
    """Both looks would find something."""
    said = Prose(SEED).text(2000)
    assert words_of_prose(f"\0{said}\0".encode())
    assert names_of_benchmark(f"\xa5{script.MODEL}\xa5{script.TOOLS[0]}\xa0".encode("latin-1")) == sorted(
        [script.MODEL, script.TOOLS[0]]
    )
    assert names_of_benchmark(b"chatcmpl-5 do_research_now") == []


def test_no_word_comes_back_but_by_chance() -> None:
    """Two runs have no longer word in common that a package did not write: none in their texts, names and tokens."""
    words = [
        set(re.findall(r"[a-z]{8,}", f"{source.text(60_000, 60_000)} {' '.join(source.name() for _ in range(500))}"))
        for source in (Source(random.Random("one")), Source(random.Random("two")))
    ]
    assert all(len(found) > 1_000 for found in words)
    assert len(words[0] & words[1]) < 5


@pytest.mark.parametrize("name", PROVIDERS)
def test_providers_say_what_they_are_given(name: str) -> None:
    """An answer has the text, the calls and counts that add up, whatever the shape of its fields."""
    speaker = corpus.Speaker(Source(random.Random(name)), PROVIDERS[name])
    for _ in range(20):
        assert speaker.say().content
        call = speaker.call("tool", argument="value")
        answer = speaker.say(call)
        assert [(each["name"], each["args"], each["id"]) for each in answer.tool_calls] == [
            ("tool", {"argument": "value"}, call["id"])
        ]
        if answer.usage_metadata:
            usage = answer.usage_metadata
            assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_scrubbed_bodies_keep_their_lengths() -> None:
    """What chance gave is replaced by as much: ids by ids, the same by the same, times by times that go on."""
    now = str(uuid.uuid1())
    now = f"{now[15:18]}{now[9:13]}{now[0]}-{now[1:5]}-6{now[5:8]}-{now[19:]}"  # as of version 6: its time comes first
    task, hashed = str(uuid.UUID(int=5 << 100)), "0123456789abcdef" * 2
    times = ["2026-01-02T03:04:05.678901", "2026-01-02T03:04:05.678902"]
    body = msgspec.msgpack.encode([now, task, hashed, *times, task, CHECKPOINT, "said"])
    scrubbed = corpus._Scrubber(random.Random(1)).scrub(body)
    assert len(scrubbed) == len(body)
    ids = msgspec.msgpack.decode(scrubbed)
    assert ids[1] == ids[5] != task
    assert ids[0] != now
    assert ids[0][14] == "6"
    assert ids[0][19:23] == now[19:23]
    assert re.fullmatch("[0-9a-f]{32}", ids[2])
    assert ids[2] != hashed
    assert datetime.fromisoformat(ids[3]) < datetime.fromisoformat(ids[4])
    assert ids[6] != CHECKPOINT
    assert ids[7] == "said"


@pytest.mark.parametrize("family", corpus.FAMILIES)
def test_a_seed_gives_the_same_bodies(family: str) -> None:
    """A run that is repeated gives the same bytes, whatever ids LangGraph drew; another seed gives others."""
    first = corpus.bodies(family, 3, "anthropic")
    assert first
    assert corpus.bodies(family, 3, "anthropic") == first
    assert corpus.bodies(family, 4, "anthropic") != first
