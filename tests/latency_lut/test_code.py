"""The digests of what rows time, on copies of nfsearch's own operators."""

from __future__ import annotations

import ast
import dataclasses
import functools
import shutil
import symtable
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfsearch.latency_lut import Key, Row, Workload, code, keys_for, profiler
from nfsearch.latency_lut.keys import ENDS
from nfsearch.latency_lut.profiler import Profiler
from nfsearch.latency_lut.sources import Sources
from nfsearch.latency_lut.timing import CPU
from nfsearch.space.operators import operators

from .helpers import made_up_row, small_space

BLOCKS = (ENDS, *(spec.name for spec in operators().values()))
DECODE = {f"{name} decode" for name in BLOCKS}


def digests() -> dict[str, str]:
    keys = [Key(phase, "float32", 1, 64, name, 0) for name in BLOCKS for phase in ("decode", "prefill")]
    return {f"{key.block} {key.phase}": code.digest_of(key) for key in keys}


@pytest.fixture
def ops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the operators, whose digests are taken in place of the installed ones'."""
    copy = shutil.copytree(code.folder_of(code.OPS), tmp_path / "ops", ignore=shutil.ignore_patterns("__pycache__"))
    read = dict(installed()._modules)
    monkeypatch.setattr(code, "folder_of", {code.OPS: copy}.__getitem__)
    forget()
    code._sources(code.OPS)._modules.update(read)
    yield copy
    forget()


@functools.cache
def installed() -> Sources:
    """The installed operators', read once for all tests, as that takes most of the time."""
    forget()
    digests()
    return code._sources(code.OPS)


def forget() -> None:
    code._digest.cache_clear()
    code._sources.cache_clear()


def forget_file(file: str) -> None:
    """Has one of the operators' files read anew."""
    sources = code._sources(code.OPS)
    sources._modules.pop(f"{code.OPS}.{file.removesuffix('.py').replace('/', '.')}", None)  # unless nothing leads to it
    sources._owners.clear()
    code._digest.cache_clear()


def changed(ops: Path, place: str) -> set[str]:
    """Which digests an additional statement in a function changes."""
    before = digests()
    file, name = place.split(":")
    path = ops / file
    tree = ast.parse(path.read_text())
    (function,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
    function.body.append(ast.parse("assert True").body[0])
    path.write_text(ast.unparse(tree))
    forget_file(file)
    return {name for name, digest in digests().items() if digest != before[name]}


def test_every_block_has_a_digest_and_they_take_no_time(ops: Path) -> None:
    forget()
    began = time.process_time()
    found = digests()
    assert time.process_time() - began < 1.0
    assert len(set(found.values())) == len(found)
    assert all(found.values())
    assert code.digest_of(Key("decode", "float32", 1, 64, "nobody:knows[x=1]", 0)) == ""


def only_locals(source: str) -> set[str]:
    """Names that functions bind for themselves and that are nothing else anywhere in the file."""
    local: set[str] = set()
    other: set[str] = set()

    def visit(table: symtable.SymbolTable) -> None:
        for symbol in table.get_symbols():
            known = symbol.is_free() or (symbol.is_local() and not symbol.is_parameter() and not symbol.is_imported())
            inside = table.get_type() == "function" and known
            (local if inside and not symbol.get_name().startswith((".", "__")) else other).add(symbol.get_name())
        for child in table.get_children():
            visit(child)

    visit(symtable.symtable(source, "file", "exec"))
    return local - other


class Rewrite(ast.NodeTransformer):
    """Other names for locals, other docstrings."""

    def __init__(self, names: set[str]) -> None:
        self.names, self.renamed = names, 0

    def visit(self, node: ast.AST) -> ast.AST:
        for field in ("id", "name", "rest"):
            if getattr(node, field, None) in self.names:
                setattr(node, field, f"another_{getattr(node, field)}")
                self.renamed += 1
        if isinstance(node, ast.Nonlocal):
            node.names = [f"another_{name}" if name in self.names else name for name in node.names]
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            if ast.get_docstring(node) is not None:
                node.body[0] = ast.Expr(ast.Constant("Says something else."))
            elif not isinstance(node, ast.Module):
                node.body.insert(0, ast.Expr(ast.Constant("Says something.")))
        return self.generic_visit(node)


def test_comments_docstrings_and_names_of_locals_leave_every_digest(ops: Path) -> None:
    before = digests()
    renamed = 0
    for path in ops.rglob("*.py"):
        source = path.read_text()
        rewrite = Rewrite(only_locals(source))
        tree = ast.fix_missing_locations(rewrite.visit(ast.parse(source)))
        path.write_text("# Another comment.\n" + ast.unparse(tree).replace("\n", "  # and another\n", 1))
        renamed += rewrite.renamed
    assert renamed > 1000
    forget()
    assert digests() == before


@pytest.mark.parametrize(
    ("place", "stale"),
    [
        ("kernels/decode/deltanet.py:_token", {"D decode"}),
        ("kernels/decode/gla.py:bind", {"GLA decode"}),
        ("kernels/decode/gemv.py:_dot", DECODE | {"ends prefill"}),
        ("kernels/decode/embedding.py:bind", {"ends decode"}),
        ("kernels/decode/projection.py:bind_head", {"ends decode", "ends prefill"}),
        ("kernels/training/shortconv.py:conv_silu", {"D prefill", "GDN prefill", "M2 prefill"}),
        ("kernels/training/chunk_gated.py:gated_linear", {"GLA prefill"}),
        ("kernels/training/chunk_shared.py:shared_linear", {"M2 prefill"}),
        ("deltanet.py:step", {"D decode"}),
        ("deltanet.py:forward", {"D prefill"}),
        ("deltanet.py:__init__", {"D decode", "D prefill"}),
        ("deltanet.py:reference", set()),
        ("chooser.py:choose", set()),
        ("checks.py:error_of", set()),
        ("parallel.py:_form", set()),
        ("decoder.py:prefill", set()),
    ],
)
def test_a_change_makes_those_rows_stale_that_run_it(ops: Path, place: str, stale: set[str]) -> None:
    assert changed(ops, place) == stale


def test_a_change_of_deltanets_decode_kernel_is_measured_and_nothing_else(
    ops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Key] = []

    def measure(self: Profiler, key: Key) -> Row:
        measured.append(key)
        return made_up_row(key)

    monkeypatch.setattr(Profiler, "measure", measure)
    monkeypatch.setattr(profiler, "warm_up", lambda kind: None)
    workloads = {"tpot": Workload(context=12), "ttft": Workload(phase="prefill", context=8)}
    keys = keys_for(small_space(), workloads, "float32")
    profiler.build(keys, tmp_path / "t.parquet", device="cpu")
    assert Counter(measured) == dict.fromkeys(keys, CPU.looks)
    measured.clear()
    changed(ops, "kernels/decode/deltanet.py:_token")
    profiler.build(keys, tmp_path / "t.parquet", device="cpu")
    assert Counter(measured) == {key: CPU.looks for key in keys if key.block.startswith("D[") and key.phase == "decode"}
    measured.clear()
    profiler.build(keys, tmp_path / "t.parquet", device="cpu")
    assert not measured


def test_an_operator_from_elsewhere_brings_sources_of_its_own(
    ops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "kernels.py").write_text("def step(x):\n    return x + 1\n")
    (package / "operator.py").write_text(
        "from nfsearch.ops.operator import Operator\nfrom theirs.kernels import step\n"
        "class Own(Operator):\n    def step(self, x, state, position):\n        return step(x)\n"
    )
    spec = dataclasses.replace(next(iter(operators().values())), name="Own", module="theirs.operator:Own")
    monkeypatch.setattr(code, "find_operator", {"Own": spec}.get)
    monkeypatch.setattr(code, "folder_of", {code.OPS: ops, "theirs": package}.__getitem__)

    def found() -> list[str]:
        forget()
        return [code.digest_of(Key(phase, "float32", 1, 64, "Own[x=1]", 0)) for phase in ("decode", "prefill")]

    decode, prefill = found()
    (package / "kernels.py").write_text("def step(x):\n    return x + 2\n")
    assert found()[0] != decode
    assert found()[1] == prefill
