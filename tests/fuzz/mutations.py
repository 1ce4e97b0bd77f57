"""Changes to valid input: in its bytes, its tokens, its structure, and to extreme values."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

EXTREMES: list[Any] = [
    *(0, -1, 1, 2, 3, 2**31, 2**63, -(2**63), 10**12, 10**20, 10**400),
    *(0.5, -0.5, 1e-320, 1e300, float("inf"), float("-inf"), float("nan")),
    *(
        True,
        False,
        None,
        "",
        " ",
        "auto",
        "../..",
        "~nosuchuser/x",
        "[/red]",
        "D" * 300,
        "\x00",
        "\u202e",
        "\\",
        "%s{}",
    ),
    *([], {}, [[]], {"": {}}, [None], {"a": 1}),
]
WORDS = [
    *("1e400", "-1", ".inf", ".nan", "0x_", "2020-99-99", "9" * 5000, "1e-320", "4M", "10B", "null", "true", "~"),
    *(
        "!!int ''",
        "!!timestamp x",
        "!!bool maybe",
        "!!map [1]",
        "!number [1]",
        "!!binary x",
        "!!set {a}",
        "!!python/x y",
    ),
    *(
        "[[[[",
        "{{{{",
        "*a",
        "&a",
        "<<: 3",
        "- -",
        "? :",
        "#",
        "\t",
        "|",
        ">",
        "''",
        '"',
        "\\ud800",
        "é",
        "\x00",
        "\x07",
    ),
    *("D", "F", "A", "M2", "GLA", "fla:X", "(", ")", "{", "}", "*{", "..", "|", "[", "]", "=", ",", ";", "()", "none"),
    *("{1..2000}", "{999999}", "*{1..500}", "[window=1|2|3]", "[ratio=1e300]", "[head_dim=7]", "a = a;", "(D | A)"),
]


def of_bytes(rng: random.Random, content: bytes) -> bytes:
    at, other = (rng.randrange(len(content) + 1) for _ in range(2))
    low, high = min(at, other), max(at, other)
    match rng.randrange(6):
        case 0:
            return content[:at]
        case 1:
            return content[:low] + content[high:]
        case 2:
            return content[:at] + rng.randbytes(rng.randint(1, 8)) + content[at + rng.randint(0, 8) :]
        case 3:
            return content[:high] + content[low:]
        case 4:
            return content[:at] + content[at : at + 1] * rng.choice([2, 200, 20_000]) + content[at:]
    changed = bytearray(content or b"\0")
    for _ in range(rng.randint(1, 10)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def of_tokens(rng: random.Random, content: bytes) -> bytes:
    tokens = re.findall(r"\w+|\s+|[^\w\s]", content.decode(errors="replace"))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(tokens) + 1)
        match rng.randrange(4):
            case 0:
                tokens[at : at + 1] = [rng.choice(WORDS)]
            case 1:
                tokens[at:at] = [rng.choice(WORDS)]
            case 2:
                tokens[at : at + rng.randint(1, 5)] = []
            case _:
                start = rng.randrange(len(tokens) + 1)
                tokens[at:at] = tokens[start : start + rng.randint(1, 30)] * rng.choice([1, 2, 50])
        tokens = tokens or [""]
    return "".join(tokens).encode("utf-8", "surrogatepass")


def of_numbers(rng: random.Random, content: bytes) -> bytes:
    """One number is another: what remains is mostly valid, and may be much."""
    numbers = list(re.finditer(rb"\d+(\.\d+)?", content))
    if not numbers:
        return content
    found = rng.choice(numbers)
    other = rng.choice([b"0", b"1", b"2", b"7", b"100", b"2000", b"1000000", b"1e9", b"0.1", b"-1"])
    return content[: found.start()] + other + content[found.end() :]


def of_structure(rng: random.Random, value: Any) -> Any:
    """A copy in which one part is another value, gone, twice there or nested deep."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.8:
        items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
        key, inner = rng.choice(items)
        rest = dict(items)
        match rng.randrange(8):
            case 0:
                del rest[key]
            case 1 if isinstance(value, dict):
                rest[rng.choice([1, "", "x.y", "é", *value])] = inner
            case _:
                rest[key] = of_structure(rng, inner)
        return rest if isinstance(value, dict) else list(rest.values())
    if rng.random() < 0.1:
        for _ in range(rng.choice([3, 60, 400])):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    if isinstance(value, str) and rng.random() < 0.6:
        return of_tokens(rng, value.encode()).decode(errors="replace")
    return rng.choice(EXTREMES)


def of_yaml(rng: random.Random, content: bytes) -> bytes:
    return yaml.safe_dump(of_structure(rng, yaml.safe_load(content)), sort_keys=False).encode("utf-8", "replace")


def of_json(rng: random.Random, content: bytes) -> bytes:
    return _json(of_structure(rng, json.loads(content)))


def of_lines(rng: random.Random, content: bytes) -> bytes:
    """Of JSON in each line: a line changed, gone, twice there or elsewhere."""
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(rng.randrange(len(lines)), lines[at])
        case 2:
            lines[at] = b"[" * 100_000 + b"\n"
        case _:
            lines[at] = of_json(rng, lines[at]) + b"\n"
    return b"".join(lines)


def of_parquet(rng: random.Random, content: bytes) -> bytes:
    table = pq.read_table(io.BytesIO(content))
    meta = dict(table.schema.metadata or {})
    name = rng.choice(table.schema.names)
    match rng.randrange(5):
        case 0 if meta:
            key = rng.choice(list(meta))
            changes: list[Callable[[random.Random, bytes], bytes]] = [of_json, of_tokens, lambda *_: b"[" * 100_000]
            meta[key] = rng.choice(changes)(rng, meta[key])
        case 1:
            table = table.drop_columns([name])
        case 2:
            table = table.slice(rng.randrange(table.num_rows + 1), rng.choice([0, 1, 5]))
        case _:
            table = _with_another_value(rng, table, name)
    stream = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(meta), stream)
    return stream.getvalue()


def _with_another_value(rng: random.Random, table: pa.Table, name: str) -> pa.Table:
    values = table.column(name).to_pylist()
    other = rng.choice(EXTREMES)
    for at in range(len(values)) if rng.random() < 0.5 else [rng.randrange(len(values) or 1)]:
        values[at : at + 1] = [other]
    try:
        changed = pa.array(values, table.schema.field(name).type)
    except (pa.ArrowException, TypeError, OverflowError):
        changed = pa.array([str(value) for value in values])
    return table.set_column(table.schema.get_field_index(name), name, changed)


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except ValueError:  # more digits than Python writes
        return b"9" * 5000
