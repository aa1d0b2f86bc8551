"""The dictionary that loose records are compressed with: made here, measured here, carried with the library.

    python bench/dictionary.py                                    measure the one that is carried
    python bench/dictionary.py --sweep                            and which size and parameters would be best
    python bench/dictionary.py --write engine/stepwell/NAME.dict  make a new one

A record of a chat is 0.2 to 2 KB and is compressed alone, so most of what zstandard finds in it is what stands in
every record: names of fields, types and channels.  A dictionary says that beforehand.

It is made so that it cannot flatter the benchmark:

1.  It is trained on graphs that are not the benchmark's, in which nothing is said (`corpus.py`).  No word of the
    benchmark's prose and none of its names may stand in it; `--write` refuses if one does.
2.  Its parameters are those that are best for runs that it was not trained on (`Runs.TUNING`); the benchmark's
    workloads are looked at afterwards, beside a third lot of runs (`Runs.HELD_OUT`).
3.  What it does for what it has never seen is measured by leaving that out: a family of graphs, or the shape of a
    provider's messages.

Same versions, same dictionary.  With other versions of what is installed another one comes out: a file that was
ever released stays as it is, and a new one gets a name and a form of its own, because logs were written with it.
"""

import argparse
import random
import re
import time
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

import zstandard

import deep
import react
import script
from corpus import FAMILIES, bodies
from prose import Prose
from providers import PROVIDERS
from stepwell import dictionary as carried
from stepwell.codec import COMPRESSION_LEVEL, LARGEST_WITH_DICTIONARY_BYTES
from stepwell_langgraph import StepwellSaver
from workloads import SEED, WORKLOADS

DICTIONARY_ID = 1_398_210_561  # of the range that is free for private use; frames need not say it

LARGEST_SAMPLE_BYTES = 3_000  # what is larger is text, of which there is nothing to learn
SAMPLES_PER_FAMILY = 1_200
JUDGES_PER_FAMILY = 300
SIZES = (2 * 1024, 4 * 1024, 8 * 1024, 16 * 1024)
SEGMENT_BYTES = (48, 64, 96, 128, 160, 192, 256, 320, 384, 512)  # zstandard's k
MATCH_BYTES = (6, 8)  # and its d
LEVELS = (1, 3, 6, 9)
EDGES = (0, 256, 512, 1024, 2048, 4096, 6144, 8192, 12288, 16384, 32768, 65536)  # of the sizes that are told apart
MEASURED = ("chat-200", "threads-200", "research-300", "react-30", "deepagents-short", "deepagents")
_WORD = re.compile(r"(?<![A-Za-z])[a-z]{6,}(?![A-Za-z])")
_WORDS_OF_PACKAGES = {"before"}  # a middleware's node is called `before_agent`
_NAMES = {script.MODEL, *script.TOOLS, "query", "research", "researcher", "chat", deep.THREAD, react.THREAD, "notes"}
_END = 1 << 62
_PAGE_ROWS = 500

Bodies = Sequence[bytes]


class Runs(IntEnum):
    """Seeds of the first run of each lot."""

    TRAINING = 0
    TUNING = 10_000
    HELD_OUT = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="make a dictionary; an existing file is left alone")
    parser.add_argument("--replace", action="store_true", help="even an existing file, which no log may depend on")
    parser.add_argument(
        "--bytes", type=int, default=carried.BYTES, help="size of the dictionary (default: %(default)s)"
    )
    parser.add_argument("--sweep", action="store_true", help="compare sizes and parameters, and what is left out")
    arguments = parser.parse_args()
    if arguments.write:
        if arguments.write.exists() and not arguments.replace:
            parser.error(f"{arguments.write} exists, and logs may have been written with it; choose another name")
        dictionary = best(arguments.bytes)
        if found := words_of_prose(dictionary) + names_of_benchmark(dictionary):
            parser.error(f"the benchmark's words stand in it: {found}")
        arguments.write.write_bytes(dictionary)
    dictionary = arguments.write.read_bytes() if arguments.write else carried.load()
    if arguments.sweep:
        _sweep()
        _leave_out()
        _by_size(dictionary)
    _measure(dictionary)


# --- making ---


def lot(runs: Runs, family: str, records: int, *, without: str | None = None) -> list[bytes]:
    """So many bodies of a family's runs, which speak as one provider's models after the other."""
    found: list[bytes] = []
    names = [name for name in PROVIDERS if without is None or not name.startswith(without)]
    seed = int(runs)
    while len(found) < records:
        found += bodies(family, seed, names[seed % len(names)])
        seed += 1
    return found[:records]


def samples(families: Iterable[str] = FAMILIES, *, without: str | None = None) -> list[bytes]:
    """What is trained on."""
    found = [body for family in families for body in lot(Runs.TRAINING, family, SAMPLES_PER_FAMILY, without=without)]
    found = [body for body in found if len(body) <= LARGEST_SAMPLE_BYTES]
    random.Random("samples").shuffle(found)  # a segment is chosen from each stretch of them
    return found


def train(from_: Bodies, size: int, segment: int, match: int) -> bytes:
    trained = zstandard.train_dictionary(
        size, from_, k=segment, d=match, level=COMPRESSION_LEVEL, dict_id=DICTIONARY_ID
    )
    return trained.as_bytes()


def best(size: int, from_: Bodies | None = None) -> bytes:
    """The dictionary of this size that is best for the runs that parameters are chosen by."""
    return min(_candidates(size, from_ or samples()), key=_badness())


def _candidates(size: int, from_: Bodies) -> list[bytes]:
    return [train(from_, size, segment, match) for segment in SEGMENT_BYTES for match in MATCH_BYTES]


def _badness() -> Callable[[bytes], float]:
    """How large a dictionary leaves the tuning runs, each family counting alike."""
    judges = [lot(Runs.TUNING, family, JUDGES_PER_FAMILY) for family in FAMILIES]
    plain = [stored(judge, None) for judge in judges]

    def badness(dictionary: bytes) -> float:
        return sum(stored(judge, dictionary) / size for judge, size in zip(judges, plain, strict=True))

    return badness


def words_of_prose(dictionary: bytes) -> list[str]:
    """Longer words of the benchmark's prose that stand in a dictionary as words."""
    prose = {word for seed in (SEED, SEED + 1) for word in re.findall(_WORD, Prose(seed).text(2_000_000))}
    return sorted(prose.intersection(re.findall(_WORD, dictionary.decode("latin-1"))) - _WORDS_OF_PACKAGES)


def names_of_benchmark(dictionary: bytes) -> list[str]:
    """What the benchmark calls its models, tools, arguments, threads, nodes and files, as far as it stands there."""
    text = dictionary.decode("latin-1")
    return sorted(name for name in _NAMES if re.search(rf"(?<![A-Za-z_]){re.escape(name)}(?![A-Za-z_])", text))


# --- measuring ---


def compressor(
    dictionary: bytes | None, level: int = COMPRESSION_LEVEL, largest: int = LARGEST_WITH_DICTIONARY_BYTES
) -> Callable[[bytes], bytes]:
    """As the codec has it: the dictionary digested once, its id in no frame, not used for what is larger."""
    without = zstandard.ZstdCompressor(level=level).compress
    if dictionary is None:
        return without
    known = carried.digested(dictionary, level)
    with_ = zstandard.ZstdCompressor(level=level, dict_data=known, write_dict_id=False).compress
    return lambda body: with_(body) if len(body) <= largest else without(body)


def stored(records: Bodies, dictionary: bytes | None, level: int = COMPRESSION_LEVEL) -> int:
    """Bytes of bodies as loose records hold them: compressed, unless that is larger."""
    return _stored(records, compressor(dictionary, level))


def _stored(records: Bodies, compress: Callable[[bytes], bytes]) -> int:
    return sum(min(len(compress(body)), len(body)) for body in records)


def workload(name: str) -> list[bytes]:
    """The bodies of one of the benchmark's workloads."""
    drive = WORKLOADS[name].prepare()
    with StepwellSaver.from_conn_string(":memory:") as saver:
        drive(saver)
        found: list[bytes] = []
        storage, thread = saver.log.storage, 0
        while threads := storage.threads(thread, _PAGE_ROWS):
            for _, row in threads:
                thread, after = row.number, 0
                while page := storage.scan(thread, after, _END, _PAGE_ROWS, reverse=False):
                    found += [record.body for record in page]
                    after = page[-1].sequence
        return found


def _measure(dictionary: bytes) -> None:
    start = time.perf_counter()
    carried.digested(dictionary, COMPRESSION_LEVEL)
    print(f"\n{len(dictionary):,} bytes, digested in {(time.perf_counter() - start) * 1e6:.0f} us\n")
    lots = {f"held out: {family}": lot(Runs.HELD_OUT, family, JUDGES_PER_FAMILY) for family in FAMILIES}
    lots |= {name: workload(name) for name in MEASURED}
    print(
        "| records of | records | plain KB | level | without KB | with KB | with / without | us without | us with |",
        end="",
    )
    print(" us back without | us back with |\n|---|" + "--:|" * 10)
    for name, records in lots.items():
        for level in LEVELS:
            before, after = stored(records, None, level), stored(records, dictionary, level)
            times = [f"{t:.1f}" for t in (*_times(records, None, level), *_times(records, dictionary, level))]
            figures = [f"{len(records):,}", f"{_kilo(sum(map(len, records)))}", level, _kilo(before), _kilo(after)]
            figures += [f"{after / before:.3f}", times[0], times[2], times[1], times[3]]
            print(f"| {name} | {' | '.join(map(str, figures))} |", flush=True)


def _times(records: Bodies, dictionary: bytes | None, level: int) -> tuple[float, float]:
    """Microseconds per record for compressing and for decompressing, the best of five rounds."""
    compress = compressor(dictionary, level)
    plain, known = zstandard.ZstdDecompressor(), zstandard.ZstdDecompressor()
    if dictionary:
        known = zstandard.ZstdDecompressor(dict_data=zstandard.ZstdCompressionDict(dictionary))
    frames = [
        (compress(body), (known if len(body) <= LARGEST_WITH_DICTIONARY_BYTES else plain).decompress)
        for body in records
    ]
    return _best(compress, records), _best(lambda frame: frame[1](frame[0]), frames)


def _best(call: Callable[[Any], bytes], given: Sequence[Any]) -> float:
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for one in given:
            call(one)
        rounds.append(time.perf_counter() - start)
    return min(rounds) / len(given) * 1e6


def _kilo(size: int) -> str:
    return f"{size / 1024:,.1f}"


def _sweep() -> None:
    """Sizes and parameters, by the runs that they are chosen by and by those that they are not."""
    from_, badness = samples(), _badness()
    held_out = [body for family in FAMILIES for body in lot(Runs.HELD_OUT, family, JUDGES_PER_FAMILY)]
    print("| KB | k | d | tuning runs | held-out runs |\n|--:|--:|--:|--:|--:|")
    for size in SIZES:
        for segment in SEGMENT_BYTES:
            for match in MATCH_BYTES:
                dictionary = train(from_, size, segment, match)
                chosen_by = badness(dictionary) / len(FAMILIES)
                share = stored(held_out, dictionary) / stored(held_out, None)
                print(f"| {size // 1024} | {segment} | {match} | {chosen_by:.3f} | {share:.3f} |", flush=True)


def _by_size(dictionary: bytes) -> None:
    """Up to which size the dictionary pays, and at which level, for what is loose in runs of all kinds."""
    records = [body for family in FAMILIES for body in lot(Runs.HELD_OUT, family, JUDGES_PER_FAMILY)]
    records += [body for name in MEASURED for body in workload(name)]
    random.Random("sizes").shuffle(records)
    print("\n| bytes from | to | records | level 1 | us | with | us | level 3 | us | with | us |\n|" + "--:|" * 11)
    for least, most in pairwise(EDGES):
        alike = [body for body in records if least < len(body) <= most][:300]
        figures = [f"{least:,}", f"{most:,}", f"{len(alike)}"]
        for level in (1, 3):
            for known in (None, dictionary):
                compress = compressor(known, level, most)
                share, microseconds = _stored(alike, compress) / sum(map(len, alike)), _best(compress, alike)
                figures += [f"{share:.3f}", f"{microseconds:.1f}"]
        print(f"| {' | '.join(figures)} |", flush=True)


def _leave_out() -> None:
    """What a dictionary does for what it was not trained on."""
    whole = best(carried.BYTES)
    print("\n| not trained on | with / without | trained on all |\n|---|--:|--:|")

    def line(name: str, records: Bodies, dictionary: bytes) -> None:
        shares = [stored(records, each) / stored(records, None) for each in (dictionary, whole)]
        print(f"| {name} | {shares[0]:.3f} | {shares[1]:.3f} |", flush=True)

    for family in FAMILIES:
        others = [name for name in FAMILIES if name != family]
        line(family, lot(Runs.HELD_OUT, family, JUDGES_PER_FAMILY), best(carried.BYTES, samples(others)))
    for provider in ("anthropic", "openai", "google", "ollama"):
        spoken = [body for family in ("chat", "assistant") for body in _spoken(family, provider)]
        line(f"messages of {provider}", spoken, best(carried.BYTES, samples(without=provider)))


def _spoken(family: str, provider: str) -> list[bytes]:
    """Bodies of held-out runs in which one provider's models speak."""
    names = [name for name in PROVIDERS if name.startswith(provider)]
    return [body for seed in range(24) for body in bodies(family, Runs.HELD_OUT + seed, names[seed % len(names)])]


if __name__ == "__main__":
    main()
