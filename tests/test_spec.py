"""SPEC.md agrees with the code, and says enough to read a log without it."""

from __future__ import annotations

import ast
import importlib
import json
import random
import re
import zlib
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lmdb
import msgspec
import pytest
import zstandard

from stepwell import (
    ItemDeleted,
    ItemPut,
    ItemTouched,
    Log,
    Sequence,
    Status,
    StepCommitted,
    Write,
    WritesRecorded,
    bundle,
    changes,
    codec,
    dictionary,
    events,
    parse,
    patch,
    storage,
)
from stepwell import format as fmt
from stepwell.storage import segments, tables
from stepwell.storage.checksums import with_checksum
from stepwell.storage.index import IndexRow
from stepwell.storage.items import ItemRow
from stepwell.storage.lmdb.datafile import LogFormat

ROOT = Path(__file__).resolve().parent.parent
SPEC = (ROOT / "SPEC.md").read_text(encoding="utf-8")
DICTIONARY = ROOT / "engine" / "stepwell" / "loose-1.dict"

SECTIONS = (
    "Guarantees and non-goals",
    "Words",
    "Tables",
    "Keys",
    "Records and rows",
    "Events",
    "Values, patches, fold, compose",
    "Append, step by step",
    "Reading and isolation",
    "Sealing and compaction",
    "Invariants",
    "Recovery and audit",
    "Versions",
    "Limits",
    "What we assume of LMDB and the disk",
    "Cancellation",
    "LangGraph mapping",
    "Choices not taken",
)

FIRST_ID = "1f0e3a5c-7b2d-6c41-8003-9a5e4d7f2b16"
TODO = (b"\xbebook Friday's train to Z\xc3\xbcrich", b"\xd9$pack: warm coat, map, swimsuit, book")
MORE = b"\xd9\x4bfind a quiet hotel by the lake, two nights, breakfast, at most 130 EUR each"
NOON = 1_700_000_000_000_000_000


# --- the page taken apart ---


def fences(language: str) -> dict[str, str]:
    """The fenced blocks of a language: what stands after it in the fence's first line, and the block."""
    found = re.findall(rf"^```{language}\b *(.*)\n((?:.*\n)*?)```$", SPEC, re.MULTILINE)
    assert len({name for name, _ in found}) == len(found)
    return dict(found)


def hex_lines(block: str) -> list[bytes]:
    """The bytes of each line; what follows two spaces is comment."""
    return [bytes.fromhex(line.split("  ")[0]) for line in block.splitlines()]


def subsections() -> dict[str, str]:
    """The text under each heading of the third level."""
    parts = re.split(r"^###? (.*)$", SPEC, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows_of(text: str, *columns: str) -> list[list[str]]:
    """The cells of the table with these first columns; none if there is no such table."""
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if [cell.strip() for cell in line.strip("|").split("|")][: len(columns)] == list(columns):
            found = []
            for row in lines[index + 2 :]:
                if not row.startswith("|"):
                    break
                found.append([cell.strip() for cell in row.strip("|").split("|")])
            return found
    return []


def test_sections() -> None:
    """The page has its eighteen sections, numbered in order."""
    titles = re.findall(r"^## (\d+)\. (.*)$", SPEC, re.MULTILINE)
    assert titles == [(str(number), title) for number, title in enumerate(SECTIONS, 1)]


# --- examples ---


def fill_example(log: Log) -> None:
    """The log that the page's examples are of."""
    thread = log.thread("trip")
    begun = changes({"todo": ("msgpack", b"\x92" + b"".join(TODO))})
    thread.append([StepCommitted(FIRST_ID, None, begun, changes({}), created_at=NOON)])
    write = Write(0, "todo", parse("msgpack", MORE))
    thread.append([WritesRecorded(FIRST_ID, "t1", "~pull", (write,), created_at=NOON + 1)])
    head = thread.state()
    assert head is not None
    more = changes({"todo": ("msgpack", b"\x93" + b"".join((*TODO, MORE)))}, head.values)
    done = StepCommitted("s2", FIRST_ID, more, changes({}), base=head.sequence, created_at=NOON + 2, status=Status.DONE)
    thread.append([done])
    log.submit(storage.Append("trip", lambda number, first: [], labels={"user": "ada"}, created_at=NOON + 3)).result()


@cache
def example() -> dict[str, bytes]:
    """The bytes behind each hex example."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "agents.stepwell"
        with Log.open(path) as log:
            fill_example(log)
        rows = read_rows(path)
    plainly(rows)
    names = {
        "events": fmt.event_key(1, 5),
        "threads": fmt.number_key(1),
        "names": fmt.name_key(0, b"trip"),
        "lanes": fmt.lane_key(1, 1),
        "index": fmt.index_key(1, 1, fmt.id_key("s2")),
        "feed": fmt.number_key(0),
        "recent": fmt.recent_key(fmt.status_facet(fmt.STATUS_DONE), 0, fmt.span_of(NOON), 1),
        "ids": fmt.sorted_key(b"trip", 1),
    }
    found = {f"{table}-key": key for table, key in names.items()}
    assert rows["recent"].pop(names["recent"]) == rows["ids"].pop(names["ids"]) == b""
    assert len(rows["recent"]) == 1  # of the label
    found.update({f"{table}-value": rows[table][key] for table, key in names.items() if table not in ("recent", "ids")})
    found["body"] = rows["events"][fmt.event_key(1, 4)][fmt.HEADER_BYTES :]
    record = codec.open_record(1, 5, rows["events"][fmt.event_key(1, 5)])
    segment, group = segments.pack(1, [record], {}, storage.Group())
    found["segments-key"] = fmt.part_key(1, 5, 0)
    # How long the frame is depends on zstandard's version.
    found["segments-head"] = segment[:12] + (100).to_bytes(4) + segment[16:48]
    found["segments-plain"] = group.plain
    found["index-further-key"] = fmt.index_further_key(1, 1, fmt.id_key("s2"), 99)
    found["stored-row"] = with_checksum("lanes", names["lanes"], found["lanes-value"])
    described = msgspec.msgpack.encode(bundle.Description("trip", 1, 6))
    found["bundle-head"] = bundle.MAGIC + bytes((bundle.VERSION, 0, 0, 0)) + len(described).to_bytes(4) + described
    covered, carried = bundle.portable(record, "trip", is_first=False)
    found["bundle-record"] = len(carried).to_bytes(4) + covered + carried
    found["meta-value"] = msgspec.msgpack.encode(LogFormat(1, 1, bytes(range(16))))
    assert rows["meta"].keys() == {b"format"}
    found.update(example_of_items())
    return found


def example_of_items() -> dict[str, bytes]:
    """The bytes behind the hex examples of items."""
    place = ("users", "ada"), "tea"
    with TemporaryDirectory() as directory:
        path = Path(directory) / "agents.stepwell"
        with Log.open(path) as log:
            log.items.submit([ItemPut(*place, parse("json", b'"black"'), created_at=NOON)]).result()
            log.items.submit([ItemPut(*place, parse("json", b'"green"'), NOON + 10**9, created_at=NOON + 1)]).result()
        rows = read_rows(path)
    item = fmt.item_key(*place)
    names = {"items": item, "versions": fmt.versions_key(item, 1), "expiries": fmt.expiry_key(NOON + 10**9, item)}
    assert rows["expiries"] == {names["expiries"]: b""}
    found = {f"{table}-key": key for table, key in names.items()}
    return found | {f"{table}-value": rows[table][names[table]] for table in ("items", "versions")}


def plainly(rows: dict[str, dict[bytes, bytes]]) -> None:
    """Store the bodies of a log as they are: which bytes zstandard makes of them depends on its version."""
    for key, record in rows["events"].items():
        rows["events"][key] = record[:3] + b"\0" + record[4:64] + plain(record)
    row = storage.unpack_thread(rows["threads"][fmt.number_key(1)])
    row.loose_bytes = row.stored_bytes = sum(map(len, rows["events"].values()))
    rows["threads"][fmt.number_key(1)] = storage.pack_row(row)


def read_rows(path: Path) -> dict[str, dict[bytes, bytes]]:
    """Every row of every table of a file, with nothing but LMDB."""
    with lmdb.open(str(path), subdir=False, readonly=True, max_dbs=64) as env, env.begin() as transaction:
        found = {}
        for name, _ in transaction.cursor():
            rows = dict(transaction.cursor(env.open_db(name, transaction, create=False)))
            if name not in (b"events", b"segments"):
                for key, stored in rows.items():
                    assert stored[-4:] == zlib.crc32(name + key + stored[:-4]).to_bytes(4)
                    rows[key] = stored[:-4]
            found[name.decode()] = rows
        return found


@pytest.mark.parametrize("name", fences("hex"))
def test_hex_example(name: str) -> None:
    """The code makes these very bytes."""
    assert b"".join(hex_lines(fences("hex")[name])).hex() == example()[name].hex()


def test_every_example_is_on_the_page() -> None:
    """Each key and each value has its example."""
    assert fences("hex").keys() == example().keys()


def test_decoded_examples() -> None:
    """The skeletons decode to the arrays that the page shows."""
    bodies = example()["body"], example()["events-value"][fmt.HEADER_BYTES :]
    skeletons = [msgspec.msgpack.decode(body[4 : 4 + int.from_bytes(body[:4])]) for body in bodies]
    (shown,) = fences("json").values()
    assert [json.loads(line) for line in shown.splitlines()] == skeletons


@pytest.mark.parametrize("title", [title for title, text in subsections().items() if rows_of(text, "Offset", "Size")])
def test_byte_table(title: str) -> None:
    """Fields follow each other without a gap, and the lines of the example below are those fields."""
    text = subsections()[title]
    table = rows_of(text, "Offset", "Size", "Field", "Meaning")
    end = 0
    for offset, size, *_ in table:
        if offset.isdecimal():
            assert int(offset) == end
            end += int(size) if size.isdecimal() else 0
    blocks = re.findall(r"^```hex.*\n((?:.*\n)*?)```$", text, re.MULTILINE)
    assert blocks
    for block in blocks:
        for line, (_, size, *_) in zip(hex_lines(block), table, strict=True):
            assert not size.isdecimal() or int(size) == len(line)


# --- names and numbers ---


ADAPTER = ("saver", "translate", "weight", "values", "store", "embedding", "nearest", "collection")
CONSTANTS = re.findall(r"`([a-z_.]+)\.([A-Z_]+) = ([^`]+)`", SPEC)


def test_constants_are_quoted() -> None:
    """The pattern finds the constants that matter most."""
    assert {"HEADER_BYTES", "KIND_STEP", "FLAG_HIDDEN", "MAX_BODY_BYTES"} <= {name for _, name, _ in CONSTANTS}


@pytest.mark.parametrize(("module", "name", "value"), CONSTANTS, ids=[".".join(found[:2]) for found in CONSTANTS])
def test_constant(module: str, name: str, value: str) -> None:
    """The code has the number that the page says."""
    package = "stepwell_langgraph" if module in ADAPTER else "stepwell"
    owner = vars(importlib.import_module(f"{package}.{module}"))
    factors = [ast.literal_eval(factor) for factor in value.split(" << ")]
    expected = factors[0] << factors[1] if len(factors) == 2 else factors[0]
    assert owner.get(name, owner.get(f"_{name}")) == expected


def test_kinds_and_flags_are_complete() -> None:
    """No kind, flag or index entry of the code is missing from the page."""
    quoted = {name for module, name, _ in CONSTANTS if module == "format"}
    assert {name for name in vars(fmt) if re.match("KIND_|FLAG_|FORM_", name)} <= quoted


def test_dictionary() -> None:
    """The file that the page names has the size and the digest that the page says."""
    ((name, digest),) = rows_of(SPEC, "File", "BLAKE2b-256")
    content = DICTIONARY.read_bytes()
    assert name.strip("`") == DICTIONARY.name
    assert digest.strip("`") == blake2b(content, digest_size=32).hexdigest() == dictionary.DIGEST
    assert len(content) == dictionary.BYTES


def test_tables() -> None:
    """The tables and which of them are derived."""
    rows = rows_of(SPEC, "Table", "Key", "Value", "Derived")
    assert {name.strip("`") for name, *_ in rows} == set(tables.ALL)
    assert {name.strip("`") for name, *_, derived in rows if derived == "yes"} == set(tables.DERIVED)


LAYOUTS = dict(re.findall(r"^(\w+) += \[(.*)\]$", "".join(fences("layout").values()), re.MULTILINE))


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str) -> None:
    """An array has the tag, the elements, their order and the defaults that the page says."""
    type_ = getattr(events, name, None) or getattr(patch, name)
    expected = [] if type_.__struct_config__.tag is None else [str(type_.__struct_config__.tag)]
    for field in msgspec.structs.fields(type_):
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        shown = "" if default is msgspec.NODEFAULT else f"={msgspec.json.encode(default).decode()}"
        expected.append(field.encode_name + shown)
    assert LAYOUTS[name].split(", ") == expected


def test_layouts_are_complete() -> None:
    """Every struct that goes into a body is on the page."""
    structs = {
        name
        for module in (events, patch)
        for name, found in vars(module).items()
        if isinstance(found, type) and issubclass(found, msgspec.Struct) and found.__module__ == module.__name__
    }
    assert LAYOUTS.keys() == structs


@pytest.mark.parametrize(
    ("title", "row"),
    [
        ("5.3 `threads`: catalogue row", storage.ThreadRow),
        ("5.5 `lanes`: lane row", storage.LaneRow),
        ("5.6 `index`: values", IndexRow),
        ("5.11 `items`: value", ItemRow),
    ],
)
def test_row(title: str, row: type[msgspec.Struct]) -> None:
    """A row has the elements that the page says, in this order, with these defaults."""
    table = rows_of(subsections()[title], "Index", "Field", "Type", "Default", "Meaning")
    assert [cells[0] for cells in table] == [str(index) for index in range(len(row.__struct_fields__))]
    assert [cells[1] for cells in table] == list(row.__struct_fields__)
    for cells, field in zip(table, msgspec.structs.fields(row), strict=True):
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if default is msgspec.NODEFAULT:
            assert cells[3] == ""
        elif isinstance(default, bytes):
            assert (cells[3], default) in {("16 zeros", bytes(16)), ("empty", b"")}
        else:
            assert json.loads(cells[3]) == json.loads(msgspec.json.encode(default))


def test_meta_keys() -> None:
    """The map in `meta` has the keys that the page says."""
    table = rows_of(subsections()["5.8 `meta`: `format`"], "Key", "Type", "Meaning")
    assert [cells[0].strip("`") for cells in table] == list(LogFormat.__struct_fields__)


def test_invariants_are_those_of_audit() -> None:
    """The page defines the invariants whose names audit gives to breaches, and says what tests each."""
    source = (ROOT / "engine" / "stepwell" / "audit.py").read_text(encoding="utf-8")
    rows = rows_of(subsections()["11. Invariants"], "", "Invariant", "Tests")
    assert [name for name, *_ in rows] == sorted(set(re.findall(r'"(I\d+)"', source)), key=lambda name: int(name[1:]))
    for name, _, names in rows:
        assert names
        assert all(test.startswith(f"`test_{name.lower()}_") for test in names.split(", "))


def test_named_tests_exist() -> None:
    """Each test that the page names stands in a file that it names."""
    defined = set()
    for path in set(re.findall(r"`(tests/[\w/]+\.py)`", SPEC)):
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        defined |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert set(re.findall(r"`(test_\w+)`", SPEC)) <= defined


def test_references_of_the_code_lead_somewhere() -> None:
    """Every guarantee and invariant that a source names is defined on the page."""
    defined = set(re.findall(r"^\| ([GI]\d+) \|", SPEC, re.MULTILINE))
    for path in [*(ROOT / "engine").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]:
        for names in re.findall(r"SPEC(?:\.md)?,? ((?:[GI]\d+(?:, | and )?)+)", path.read_text(encoding="utf-8")):
            assert set(re.findall(r"[GI]\d+", names)) <= defined, f"{path.name} names one of {names}"


# --- a reader made from the page alone ---


def header(short: int, holds: int, forms: dict[int, int], length: int) -> bytes:
    """A msgpack header in its shortest form: in the first byte if that holds it, else in as few bytes as will do."""
    if length < holds:
        return bytes((short | length,))
    first = next(first for first, size in forms.items() if length < 1 << (8 * size))
    return bytes((first,)) + length.to_bytes(forms[first])


def array_header(count: int) -> bytes:
    return header(0x90, 16, {0xDC: 2, 0xDD: 4}, count)


def map_header(count: int) -> bytes:
    return header(0x80, 16, {0xDE: 2, 0xDF: 4}, count)


def text_header(length: int) -> bytes:
    return header(0xA0, 32, {0xD9: 1, 0xDA: 2, 0xDB: 4}, length)


def extension_header(length: int) -> bytes:
    return header(0, 0, {0xC7: 1, 0xC8: 2, 0xC9: 4}, length) + b"\x07"


def u64(number: int) -> bytes:
    return number.to_bytes(8)


def hashed(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=16).digest()


def plain(record: bytes) -> bytes:
    """Section 5.2: the body in plain form."""
    assert record[3] in (0, 1, 2)
    if record[3] == 0:
        return record[64:]
    known = zstandard.ZstdCompressionDict(DICTIONARY.read_bytes()) if record[3] == 2 else None
    return zstandard.ZstdDecompressor(dict_data=known).decompress(record[64:])


class Stranger:
    """Reads one thread of a log as the page says, knowing LMDB, msgpack, zstandard and BLAKE2b."""

    def __init__(self, path: Path, thread_id: str) -> None:
        self.rows = read_rows(path)
        name = self.rows["names"][u64(0) + hashed(thread_id)]
        assert name[8:].decode() == thread_id
        self.thread = int.from_bytes(name[:8])
        self.lanes = {
            value[8:].decode(): int.from_bytes(value[:8])
            for key, value in self.rows["names"].items()
            if key[:8] == u64(self.thread)
        }
        self.sealed: dict[int, tuple[bytes, bytes]] = {}
        self.chains: dict[int, bytes] = {}
        self.bases: dict[int, list[Any]] = {}
        self.read_segments()

    def read_segments(self) -> None:
        """Section 5.9: all events that are in segments, and the states that are kept there."""
        blocks: dict[int, bytes] = {}
        parts: dict[bytes, bytes] = {}
        for key in sorted(key for key in self.rows["segments"] if key[:8] == u64(self.thread)):
            parts[key[:16]] = parts.get(key[:16], b"") + self.rows["segments"][key]
        for key, data in parts.items():
            assert data[:4] in (b"\1\1\0\0", b"\1\2\0\0")
            count, bases = int.from_bytes(data[4:8]), int.from_bytes(data[8:12])
            assert int.from_bytes(data[12:16]) == len(data) - 64
            first, group = int.from_bytes(data[16:24]), int.from_bytes(data[24:32])
            assert data[48:64] == blake2b(key + data[:48] + data[64:80] + data[-4:], digest_size=16).digest()
            before = b"".join(block for start, block in blocks.items() if start >= group)
            known = zstandard.ZstdCompressionDict(before, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if before else None
            if data[1] == 2:
                assert group == first
                known = zstandard.ZstdCompressionDict(DICTIONARY.read_bytes())
            block = zstandard.ZstdDecompressor(dict_data=known).decompress(data[64:])
            blocks[first] = block
            rows = [bytes(block[column * count + number] for column in range(48)) for number in range(count)]
            lengths = [(int.from_bytes(row[40:44]), int.from_bytes(row[44:])) for row in rows]
            skeleton, payload = 48 * count, 48 * count + sum(length for length, _ in lengths)
            for number, (head, tail) in enumerate(lengths):
                parts = head.to_bytes(4), block[skeleton : skeleton + head], block[payload : payload + tail]
                self.sealed[first + number] = rows[number][:40], b"".join(parts)
                skeleton, payload = skeleton + head, payload + tail
            table, state = payload, payload + 12 * bases
            for place in range(table, state, 12):
                length = int.from_bytes(block[place + 8 : place + 12])
                self.bases[int.from_bytes(block[place : place + 8])] = msgspec.msgpack.decode(
                    block[state : state + length]
                )
                state += length
            assert state == len(block)
            self.chains[first + count - 1] = data[32:48]
            assert key[8:] == u64(first + count - 1)

    def record(self, sequence: int) -> tuple[bytes, bytes]:
        """Sections 5.1 and 5.9: header up to its hashes, with the form as 0, and plain body; checked."""
        if sequence in self.sealed:
            return self.sealed[sequence]
        record = self.rows["events"][u64(self.thread) + u64(sequence)]
        assert record[0] == 1
        covered, body = record[:3] + b"\0" + record[4:40], plain(record)
        assert record[40:48] == self.seal(sequence, covered, body)[:8]
        self.chains[sequence] = record[48:64]
        return covered, body

    def seal(self, sequence: int, covered: bytes, body: bytes) -> bytes:
        digest = blake2b(body, digest_size=32).digest()
        return blake2b(u64(self.thread) + u64(sequence) + covered + digest, digest_size=24).digest()

    def check_chain(self) -> None:
        """Section 5.1, the chain, from the first event to the last."""
        loose = {int.from_bytes(key[8:]) for key in self.rows["events"] if key[:8] == u64(self.thread)}
        assert not loose & self.sealed.keys()
        sequences = sorted(loose | self.sealed.keys())
        first = self.event(sequences[0])[0]
        chain = {1: bytes(16), 6: first[3] if first[0] == 6 else b""}[first[0]]
        for sequence in sequences:
            chain = blake2b(chain + self.seal(sequence, *self.record(sequence)), digest_size=16).digest()
            assert self.chains.get(sequence, chain) == chain

    def event(self, sequence: int) -> tuple[list[Any], bytes]:
        """Sections 5.2 and 6: the array and the payload."""
        body = self.record(sequence)[1]
        end = 4 + int.from_bytes(body[:4])
        return msgspec.msgpack.decode(body[4:end]), body[end:]

    def head(self, lane: str) -> int:
        """Section 5.5."""
        return int(msgspec.msgpack.decode(self.rows["lanes"][u64(self.thread) + self.lanes[lane].to_bytes(4)])[1])

    def of_id(self, lane: str, step_id: str) -> tuple[int, list[int]]:
        """Sections 4.5 and 5.6: the newest step and the writes of an id, which here is no UUID."""
        key = u64(self.thread) + self.lanes[lane].to_bytes(4) + b"\x01" + hashed(step_id)
        _, step, hidden, writes, _ = msgspec.msgpack.decode(self.rows["index"][key])
        for further in sorted(key_ for key_ in self.rows["index"] if key_.startswith(key) and key_ != key):
            more = msgspec.msgpack.decode(self.rows["index"][further])
            assert further[29:] == u64(more[0])
            writes += more
        return 0 if hidden else step, writes

    def found_by(self, facet: bytes) -> bool:
        """Section 4.6: whether the thread stands under a facet, in the epoch and the span that its row says."""
        row = msgspec.msgpack.decode(self.rows["threads"][u64(self.thread)])
        return facet + u64(row[15] // 1024) + (row[12] >> 36).to_bytes(4) + u64(self.thread) in self.rows["recent"]

    def status(self) -> int:
        """Sections 5.1 and 5.3, of a thread in which every step and all writes say something."""
        status = 0
        heads: dict[bytes, tuple[str, int]] = {}
        said: dict[tuple[bytes, str], int] = {}
        loose = {int.from_bytes(key[8:]) for key in self.rows["events"] if key[:8] == u64(self.thread)}
        for sequence in sorted(loose | self.sealed.keys()):
            covered, event = self.record(sequence)[0], self.event(sequence)[0]
            lane, says = covered[4:8], (covered[2] & 28) >> 2
            if event[0] == 4:
                said[lane, event[1]] = says
            elif event[0] != 3 or covered[2] & 2:
                continue
            elif not covered[2] & 1 or heads[lane][0] == event[1]:
                heads[lane] = (event[1], says)
            step_id, own = heads.get(lane, ("", 0))
            if step_id == event[1]:
                told = said.get((lane, step_id), 1)
                status = own if told == 1 else told
        return status

    def listed(self, lane: str) -> list[str]:
        """Section 5.1: the ids that lists show, newest first."""
        following = int(msgspec.msgpack.decode(self.rows["lanes"][u64(self.thread) + self.lanes[lane].to_bytes(4)])[2])
        found = []
        while following:
            found.append(self.event(following)[0][1])
            following = int.from_bytes(self.record(following)[0][32:40])
        return found

    def state(self, sequence: int) -> dict[str, tuple[str, bytes]]:
        """Section 7.2: the channels after a step, as type and payload."""
        branch = []
        while sequence and sequence not in self.bases:
            branch.append(sequence)
            sequence = int.from_bytes(self.record(sequence)[0][24:32])
        channels: dict[str, Any] = self.bases[sequence][3] if sequence else {}
        for step in reversed(branch):
            event = self.event(step)[0]
            assert event[0] == 3
            channels = self.merged(absolute(event[3], step), channels)
        return {name: (value[1], self.payload(value)) for name, value in channels.items()}

    def merged(self, merge: list[Any], old: dict[str, Any]) -> dict[str, Any]:
        tag, drop, changed = merge
        assert tag == 6
        entries = {name: value for name, value in old.items() if name not in drop}
        for name, change in changed.items():
            entries[name] = self.applied(change, entries.get(name))
        return entries

    def applied(self, change: list[Any], old: list[Any] | None) -> list[Any]:
        if change[0] == 5:
            assert old is not None
            elements = [element for piece in old[4] for element in elements_of(piece)]
            new: list[tuple[int, Any]] = []
            for piece in change[1]:
                new.extend(elements[piece[1] : piece[1] + piece[2]] if piece[0] == 7 else elements_of(piece))
            return [2, old[1], old[2], len(new), [[8, [length], content] for length, content in new]]
        if change[0] == 6:
            assert old is not None
            return [3, old[1], old[2], self.merged(change, old[3])]
        return change

    def payload(self, value: list[Any]) -> bytes:
        """Section 7.1."""
        if value[0] == 1:
            return self.content(value[2])
        if value[0] == 2:
            data = array_header(value[3]) + b"".join(self.content(piece[2]) for piece in value[4])
        else:
            data = map_header(len(value[3])) + b"".join(
                text_header(len(key.encode())) + key.encode() + self.payload(item) for key, item in value[3].items()
            )
        if value[2]:
            data = extension_header(len(data)) + data
        return data

    def content(self, content: Any) -> bytes:
        if isinstance(content, bytes):
            return content
        if content[0] == 10:
            return b"".join(self.content(part) for part in content[1])
        tag, sequence, start, length = content
        assert tag == 9
        payload = self.event(sequence)[1]
        assert start + length <= len(payload)
        return payload[start : start + length]

    def writes(self, lane: str, step_id: str) -> list[tuple[str, str, bytes]]:
        """Section 6: the writes that count, as task, channel and payload."""
        kept: dict[tuple[str, int], tuple[str, str, list[Any]]] = {}
        for sequence in self.of_id(lane, step_id)[1]:
            _, _, task_id, task_path, writes, *_ = self.event(sequence)[0]
            for index, channel, value in writes:
                if index < 0 or (task_id, index) not in kept:
                    kept[task_id, index] = (task_path, channel, absolute(value, sequence))
        order = sorted(kept, key=lambda place: (kept[place][0], *place))
        return [(place[0], kept[place][1], self.payload(kept[place][2])) for place in order]


def elements_of(piece: list[Any]) -> Iterator[tuple[int, Any]]:
    """The elements of a New, each with its length and content."""
    _, lengths, content = piece
    start = 0
    for length in lengths:
        if isinstance(content, bytes):
            yield length, content[start : start + length]
        else:
            yield length, cut(content, start, length)
        start += length


def absolute(form: list[Any], sequence: int) -> list[Any]:
    """The same form with references to its own event naming that event."""
    tag = form[0]
    if tag in (1, 8):
        return [*form[:2], own(form[2], sequence)]
    if tag in (2, 5):
        return [*form[:-1], [absolute(piece, sequence) for piece in form[-1]]]
    if tag in (3, 6):
        return [*form[:-1], {key: absolute(item, sequence) for key, item in form[-1].items()}]
    return form


def cut(content: list[Any], start: int, length: int) -> list[Any]:
    """Some bytes of content that is a reference, or several parts."""
    if content[0] == 9:
        return [9, content[1], content[2] + start, length]
    parts: list[Any] = []
    for part in content[1]:
        size = len(part) if isinstance(part, bytes) else part[3]
        low, high = max(start, 0), min(start + length, size)
        if low < high:
            parts.append(part[low:high] if isinstance(part, bytes) else cut(part, low, high - low))
        start -= size
        if start + length <= 0:
            break
    return [10, parts]


def own(content: Any, sequence: int) -> Any:
    if isinstance(content, bytes):
        return content
    if content[0] == 10:
        return [10, [own(part, sequence) for part in content[1]]]
    return [9, sequence, *content[2:]] if content[1] == 0 else content


def random_payload(chance: random.Random) -> tuple[str, bytes]:
    """A value of any shape, in the serializer's bytes."""

    def text() -> str:
        return " ".join(chance.choice(("lake", "train", "coat", "Zürich", "book")) for _ in range(chance.randrange(30)))

    shape = chance.randrange(6)
    if shape == 0:
        return "null", b""
    if shape == 1:
        return "bytes", chance.randbytes(chance.randrange(300))
    value: Any = [text() for _ in range(chance.choice((0, 3, 15, 16, 40)))]
    if shape >= 4:
        value = {f"key {number}": chance.choice((text(), [text()] * 9)) for number in range(chance.choice((1, 15, 17)))}
    data = msgspec.msgpack.encode(value)
    if shape == 3:
        data = msgspec.msgpack.encode(msgspec.msgpack.Ext(7, data))
    return "msgpack", data


def fill_at_random(log: Log, chance: random.Random) -> None:
    """A thread with two lanes, branches, steps committed again, lists that grow and shrink, writes in any order."""
    thread = log.thread("trip")
    for number in range(60):
        lane = chance.choice(("", "tools:1"))
        steps = list(thread.steps(lane=lane))
        parent = chance.choice(steps[:5]) if steps else None
        before = thread.state(parent.step_id, lane=lane) if parent else None
        channels = dict(before.channels) if before else {}
        for name in chance.sample("abcdef", 3):
            type_, data = channels.get(name, ("", b""))
            if type_ == "msgpack" and (0x90 <= data[0] <= 0x9F or data[0] == 0xDC):
                elements = msgspec.msgpack.decode(data)[chance.randrange(2) :]
                channels[name] = (type_, msgspec.msgpack.encode([*elements, f"and number {number} " * 5]))
            elif chance.random() < 0.3:
                channels.pop(name, None)
            else:
                channels[name] = random_payload(chance)
        step_id = chance.choice(steps).step_id if steps and chance.random() < 0.2 else f"step {number}"
        recorded = tuple(
            Write(chance.choice((-3, index)), "abcdef"[index], parse(*channels.get("abcdef"[index], ("null", b""))))
            for index in range(4)
        )
        step = StepCommitted(
            step_id,
            parent.step_id if parent else None,
            changes(channels, before.values if before else None),
            changes({}),
            lane,
            before.sequence if before else Sequence(0),
            status=chance.choice([*Status]),
        )
        awaited = step_id if chance.random() < 0.3 else f"step {chance.randrange(60)}"
        writes = WritesRecorded(
            awaited, f"task {number % 3}", f"~{number % 2}", recorded, lane, status=chance.choice([*Status])
        )
        both: list[events.Event] = [step, writes]
        chance.shuffle(both)
        thread.append(both, labels={"turn": number, "user": "ada" if number % 3 else None})


@pytest.mark.parametrize(
    "form", ["as written", "copied", "pruned", "pruned and copied", "sealed", "sealed and copied", "pruned and sealed"]
)
@pytest.mark.parametrize("seed", range(3))
def test_a_stranger_reads_the_same(seed: int, form: str, tmp_path: Path) -> None:
    """A reader that knows only the page finds the same states, lists and writes as the library."""
    path, name = tmp_path / "agents.stepwell", "trip"
    chance = random.Random(seed)
    with Log.open(path, seal_after_events=40) as log:
        fill_at_random(log, chance)
        thread = log.thread(name)
        if "pruned" in form:
            places = [step.sequence for lane in ("", "tools:1") for step in thread.steps(lane=lane)]
            thread.prune(places[::3], retain=dict.fromkeys(places[1::3], frozenset("abc")))
        if "sealed" in form:
            assert log.seal(name)
            fill_at_random(log, chance)
        if "copied" in form:
            thread.copy_to("copy")
            thread = log.thread("copy")
        assert log.audit().breaches == []
        shown = {
            lane: {
                step.step_id: (thread.state(step.step_id, lane=lane), thread.writes(step.step_id, lane=lane))
                for step in thread.steps(lane=lane)
            }
            for lane in ("", "tools:1")
        }
        heads = {lane: thread.state(lane=lane) for lane in shown}
        summary = thread.summary()
        assert summary is not None
        assert summary.labels == {"turn": 59, "user": "ada"}

    stranger = Stranger(path, thread.id)
    stranger.check_chain()
    assert stranger.lanes.keys() == shown.keys()
    assert summary.status == ("", *Status)[stranger.status()]
    label = blake2b(b"\0\0\0\x04user\xa3ada", digest_size=8).digest()
    assert stranger.found_by(u64(stranger.status()))
    assert stranger.found_by(label)
    assert not stranger.found_by(u64(stranger.status() % 4 + 1))
    for lane, steps in shown.items():
        assert stranger.listed(lane) == list(steps)
        head = heads[lane]
        assert head is not None
        assert stranger.head(lane) == head.sequence
        for step_id, (state, writes) in steps.items():
            assert state is not None
            assert stranger.of_id(lane, step_id)[0] == state.sequence
            assert stranger.state(state.sequence) == state.channels
            expected = [(found.task_id, found.write.channel, found.write.value) for found in writes]
            assert stranger.writes(lane, step_id) == [
                (task_id, channel, patch.payload_of(value, lambda ref: b"")) for task_id, channel, value in expected
            ]


# --- items, read from the page alone ---


def text_in_key(text: bytes) -> bytes:
    """Section 4.6."""
    return bytes((len(text),)) + text if len(text) < 64 else b"\x40" + blake2b(text, digest_size=16).digest()


def item_in_key(namespace: tuple[str, ...], key: str) -> bytes:
    """Section 4.6."""
    parts = [part.encode() for part in namespace]
    found = b"".join(text_in_key(part) for part in parts[:6])
    if parts[6:]:
        rest = b"".join(len(part).to_bytes(4) + part for part in parts[6:])
        found += b"\x41" + blake2b(rest, digest_size=16).digest()
    return found + b"\x7f" + text_in_key(key.encode())


class StrangeItems(Stranger):
    """Reads items with nothing but the page."""

    def value(self, sequence: int) -> tuple[str, bytes]:
        event = self.event(sequence)[0]
        assert event[0] == 9
        value = absolute(event[3], sequence)
        return value[1], self.payload(value)

    def commit(self, sequence: int) -> int:
        event = self.event(sequence)[0]
        return event[{9: 7, 10: 5}[event[0]]] or int.from_bytes(self.record(sequence)[0][8:16])

    def past(self, item: bytes) -> list[tuple[int, int, bool]]:
        """Section 5.12: commit, sequence and whether it is a deletion, of all versions but the one in `items`."""
        found: list[tuple[int, int, bool]] = []
        for key in sorted(key for key in self.rows["versions"] if key[:-8] == item):
            commit = ahead = 0
            _, *numbers = msgspec.msgpack.decode(self.rows["versions"][key])
            for index in range(0, len(numbers), 2):
                commit, ahead = commit + numbers[index], ahead + numbers[index + 1] // 2
                found.append((commit, commit + ahead, bool(numbers[index + 1] & 1)))
                assert self.commit(commit + ahead) == commit
            assert len(numbers) <= 128 or len({commit for commit, *_ in found[63 - len(numbers) // 2 :]}) == 1
            assert int.from_bytes(key[-8:]) == numbers[0]
        return found

    def item(self, item: bytes, at: int) -> tuple[str, bytes] | None:
        """Section 9: what an item was after a commit."""
        stored = self.rows["items"].get(item)
        if stored is not None:
            sequence, commit, *_, value, _ = msgspec.msgpack.decode(stored)
            if commit <= at:
                assert value is None or tuple(value) == self.value(sequence)
                return self.value(sequence)
        for commit, sequence, deleted in reversed(self.past(item)):
            if commit <= at:
                return None if deleted else self.value(sequence)
        return None


@pytest.mark.parametrize("form", ["as written", "sealed", "pruned", "pruned and sealed"])
def test_a_stranger_reads_the_same_items(form: str, tmp_path: Path) -> None:
    """A reader that knows only the page finds the same items at every moment as the library."""
    path = tmp_path / "agents.stepwell"
    chance = random.Random(form)
    places = [(("a",), "k"), (("a", "b"), "k" * 64), (tuple("abcdefgh"), ""), ((), "x")]
    commits = []
    with Log.open(path, seal_after_events=40) as log:
        for _ in range(60):
            changes_: list[events.ItemEvent] = []
            for _ in range(chance.choice((1, 1, 1, 20))):
                place, time = chance.choice(places), chance.choice((None, chance.randrange(1, 99)))
                put = ItemPut(*place, parse(*random_payload(chance)), time, {"v": parse("f", chance.randbytes(70))})
                touch = ItemTouched(*place, Sequence(chance.randrange(1, 99)), 50)
                changes_.append(chance.choice((put, put, put, put, ItemDeleted(*place, time), touch)))
            commits.append(log.items.submit(changes_).result().commit)
        if "pruned" in form:
            commits = commits[30:]
            log.items.prune(commits[0])
        if "sealed" in form:
            log.seal()
        assert log.audit().breaches == []
        shown = {at: log.items.get_many(places, at=at) for at in commits}
        number = log.storage.event_threads()[0]

    stranger = StrangeItems(path, fmt.ITEMS_THREAD_ID)
    assert stranger.thread == number
    stranger.check_chain()
    for at, items in shown.items():
        found = [stranger.item(item_in_key(*place), at) for place in places]
        assert found == [None if item is None else item.value for item in items]
