"""What a digest of code counts and what it follows, on small packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfsearch.latency_lut.sources import Sources

BEFORE = '''
import math
from functools import partial as bound

LIMIT = 3

@bound
def run(x, *, scale=1.0):
    """Runs."""
    total: float = 0.0
    for i, each in enumerate(x):
        if (half := each / 2) > LIMIT:
            total += half * scale
    try:
        squares = [each * each for each in x if each]
    except ValueError as problem:
        raise problem
    def inner(y):
        nonlocal total
        return total + y
    return f"{total:.1f} of {math.pi}", inner, squares
'''
SAME = {
    "a comment": ("    total: float", "    # a sum\n    total: float"),
    "a docstring": ('"""Runs."""', '"""Does\n    much more."""'),
    "no docstring": ('    """Runs."""\n', ""),
    "an annotation": ("def run(x, *", "def run(x: list[float], *"),
    "no annotation": ("total: float =", "total ="),
    "layout": ("run(x, *, scale=1.0)", "run(\n    x,\n    *,\n    scale=1.0,\n)"),
    "a renamed local": ("total", "summed"),
    "a renamed loop variable": ("i, each", "index, each"),
    "a renamed walrus": ("half", "share"),
    "a renamed variable of a comprehension": ("[each * each for each in x if each]", "[z * z for z in x if z]"),
    "a renamed exception": ("problem", "error"),
    "a renamed function within": ("inner", "within"),
    "a renamed import": ("bound", "partially"),
    "another definition": ("LIMIT = 3", "LIMIT = 3\nOTHER = 4\ndef other():\n    return OTHER"),
    "a declaration": ("    try:", "    pass\n    try:"),
}
OTHER = {
    "a constant": ("0.0", "0.5"),
    "a constant of the module": ("LIMIT = 3", "LIMIT = 4"),
    "an operator": ("half * scale", "half + scale"),
    "a renamed parameter": ("scale", "factor"),
    "a default": ("scale=1.0", "scale=2.0"),
    "a parameter by position": ("x, *, scale", "x, scale"),
    "a decorator": ("@bound\n", ""),
    "another import": ("from functools import partial", "from functools import reduce"),
    "a text": (" of {", " from {"),
    "a format": (":.1f", ":.2f"),
    "two locals exchanged": ("return total + y", "return y + total"),
    "what Triton specialises": ("def run(x, *", "def run(x: tl.constexpr, *"),
    "a statement": ("    try:", "    print(x)\n    try:"),
    "what runs when the module is imported": ("LIMIT = 3", "LIMIT = 3\nprint()"),
}


def digest(folder: Path, source: str, *roots: str) -> str:
    (folder / "pack.py").write_text(source)
    return Sources({"pack": folder / "pack.py"}).digest(roots)


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in SAME.items()])
def test_what_computes_nothing_does_not_count(tmp_path: Path, change: tuple[str, str]) -> None:
    changed = BEFORE.replace(*change)
    assert changed != BEFORE
    assert digest(tmp_path, BEFORE, "pack:run") == digest(tmp_path, changed, "pack:run")


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in OTHER.items()])
def test_what_computes_counts(tmp_path: Path, change: tuple[str, str]) -> None:
    changed = BEFORE.replace(*change)
    assert changed != BEFORE
    assert digest(tmp_path, BEFORE, "pack:run") != digest(tmp_path, changed, "pack:run")


def test_the_digest_is_the_same_in_every_version_of_python(tmp_path: Path) -> None:
    assert digest(tmp_path, BEFORE, "pack:run") == "5f73a882de60"


# --- what is followed ------------------------------------------------------------------------------------------------

PACKAGE = {
    "__init__.py": "from pack.base import Base",
    "base.py": """
from pack import helpers

class Base:
    size = helpers.SIZE
    unused = helpers.other()

    def __init__(self, width):
        self.width = width

    def step(self, x):
        return self.inner(x) + self.width

    def inner(self, x):
        return helpers.one(x)

    def forward(self, x):
        return helpers.two(x)
""",
    "helpers.py": """
SIZE = 3

def one(x):
    return _shared(x)

def two(x):
    from pack.deep.kernel import launch
    return launch(x) * _shared(x)

def other():
    return 0

def _shared(x):
    return x
""",
    "deep/__init__.py": "",
    "deep/kernel.py": """
import torch
from pack import helpers as h
from pack.chooser import choose

def launch(x):
    return torch.exp(x) if choose(x) else h.SIZE

def apply(op, x):
    return x * op.size

def step(x):
    return _helper(x)

def _helper(x):
    return x

class Kernel(torch.nn.Module):
    def forward(self, x):
        return h.other()
""",
    "chooser.py": "from pack import helpers\ndef choose(x):\n    return helpers.other()",
    "chosen.py": """
from pack.helpers import other

def any():
    return other()
""",
    "own.py": """
import importlib
import pack
from pack.deep import kernel as kernels
from pack.deep.kernel import Kernel

FORMS = {"decode": "pack.deep.kernel:step"}

class Own(pack.Base):
    forms = FORMS

    def __init__(self, width):
        super().__init__(width)

    def inner(self, x):
        return super().inner(x) + 1

    def forward(self, x):
        return kernels.apply(self, Kernel()(x))

    def lazily(self):
        return self.forms

    def by_name(self, name):
        return getattr(importlib.import_module("pack.chosen"), name)
""",
}


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return Sources({"pack": tmp_path}, {"pack.chooser"})


def reached(sources: Sources, *roots: str) -> set[str]:
    """Without what counts with every definition of a module or a class."""
    found = {name.removeprefix("pack.") for name in sources.definitions(roots)}
    return {name for name in found if not name.endswith((":", ".", ".class"))}


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("pack.helpers:one", {"helpers:one", "helpers:_shared"}),
        (
            "pack.helpers:two",
            {"helpers:two", "helpers:_shared", "deep.kernel:launch", "helpers:SIZE"},
        ),
        ("pack.base:Base.step", {"base:Base.step", "base:Base.inner", "helpers:one", "helpers:_shared"}),
        (  # the nearest `inner`, and what its super() is
            "pack.own:Own.step",
            {"base:Base.step", "own:Own.inner", "base:Base.inner", "helpers:one", "helpers:_shared"},
        ),
        ("pack.own:Own.__init__", {"own:Own.__init__", "base:Base.__init__"}),
        (  # a class that is used is taken whole; what a function asks of any value may be the operator's own
            "pack.own:Own.forward",
            {"own:Own.forward", "deep.kernel:apply", "deep.kernel:Kernel", "helpers:other", "base:Base.size"}
            | {"helpers:SIZE"},
        ),
        ("pack.own:Own.lazily", {"own:Own.lazily", "own:Own.forms", "own:FORMS", "deep.kernel:step"}
         | {"deep.kernel:_helper"}),
        ("pack.own:Own.by_name", {"own:Own.by_name", "chosen:any", "helpers:other"}),
        ("pack:Base", {"base:Base", "helpers:SIZE", "helpers:other", "helpers:one", "helpers:_shared"}
         | {"helpers:two", "deep.kernel:launch"}),
    ],
)  # fmt: skip
def test_what_is_followed(sources: Sources, root: str, expected: set[str]) -> None:
    assert reached(sources, root) == expected


def test_definitions_can_be_left_out_too(sources: Sources, tmp_path: Path) -> None:
    fewer = Sources({"pack": tmp_path}, {"pack.deep.kernel.launch"})
    assert reached(fewer, "pack.helpers:two") == {"helpers:two", "helpers:_shared"}


def test_a_root_that_is_not_there(sources: Sources) -> None:
    for root in ("pack.own:Nobody", "pack.own:Own.nothing", "elsewhere:f"):
        with pytest.raises(ValueError, match=f"there is no {root}"):
            sources.digest([root])


def test_what_moves_to_another_module_stays_the_same(sources: Sources, tmp_path: Path) -> None:
    before = sources.digest(["pack.own:Own.lazily", "pack.helpers:two"])
    (tmp_path / "deep" / "kernel.py").rename(tmp_path / "moved.py")
    for name in ("own.py", "helpers.py"):
        path = tmp_path / name
        path.write_text(path.read_text().replace("pack.deep.kernel", "pack.moved").replace("pack.deep ", "pack "))
    assert Sources({"pack": tmp_path}, {"pack.chooser"}).digest(["pack.own:Own.lazily", "pack.helpers:two"]) == before
