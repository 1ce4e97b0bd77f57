"""Reading YAML so that every complaint names the line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from nfsearch.support.errors import first_line
from nfsearch.support.names import nearest
from nfsearch.support.settings import SettingError

MAX_VALUES = 10_000  # of one file, aliases followed
MAX_BYTES = 256_000  # of one file; reading them takes seconds
_EXPECTED = {
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "string_type": "expected text",
    "bool_parsing": "expected true or false",
    "tuple_type": "expected a list",
    "dict_type": "expected keys and values",
    "model_type": "expected keys and values",
    "too_short": "expected at least one",
}
M = TypeVar("M", bound=BaseModel)
_KINDS = {
    "tag:yaml.org,2002:int": "whole number that can be read",
    "tag:yaml.org,2002:float": "number",
    "tag:yaml.org,2002:bool": "true or false",
    "tag:yaml.org,2002:timestamp": "date",
    "tag:yaml.org,2002:str": "text of Unicode",
}
_SUFFIX = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `2e6`, `4M` and `10B` are numbers, a key given twice is an error."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node. Raises ConstructorError, which has the line, whatever is wrong with it."""
        try:
            value = super().construct_object(node, deep=deep)
            if isinstance(value, str):
                value.encode()
            return value
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception:  # PyYAML's constructors raise what their author did not think of
            kind = _KINDS.get(node.tag, node.tag.rpartition(":")[2].removeprefix("!"))
            shown = ascii(node.value[:40]) if isinstance(node, yaml.ScalarNode) else "what is in brackets"
            raise yaml.constructor.ConstructorError(None, None, f"{shown} is no {kind}", node.start_mark) from None


def _construct_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    text = node.value
    value = float(text[:-1]) * _SUFFIX[text[-1]] if text[-1] in _SUFFIX else float(text)
    return int(value) if value.is_integer() else value


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key has to be a word", key.start_mark)
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' is given twice", key.start_mark)
        seen.add(str(key.value))
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_implicit_resolver("!number", re.compile(r"^[-+]?\d+(\.\d+)?([eE][-+]?\d+|[kKMGBT])$"), list("-+0123456789"))
_Loader.add_constructor("!number", _construct_number)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


class YamlFile:
    """A YAML file's text, its values, and where each of them stands."""

    def __init__(self, text: str, name: str) -> None:
        """Raises ValueError, naming the line, for what is not YAML, not a mapping, or expands beyond measure."""
        self.text, self.name = text, name
        try:
            loader = _Loader(text)
            self.root = loader.get_single_node()
            if self.root is None:
                raise ValueError(f"{name}: the file is empty")
            for count, _ in enumerate(_nodes(self.root)):
                if count > MAX_VALUES:
                    raise ValueError(f"{name}: more than {MAX_VALUES:,} values, aliases followed")
            self.values = loader.construct_document(self.root)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            hint = ": text with brackets goes in quotes" if "got '[" in str(error.problem) else ""
            raise ValueError(f"{name}:{line}: not valid YAML: {error.problem}{hint}") from None
        except (yaml.YAMLError, RecursionError) as error:
            reason = "brackets in brackets too deep" if isinstance(error, RecursionError) else first_line(error)
            raise ValueError(f"{name}: not valid YAML: {reason}") from None
        if not isinstance(self.values, dict):
            raise ValueError(f"{name}:1: expected keys and values, found {type(self.values).__name__}")
        self.values = {
            key: value for key, value in self.values.items() if value is not None
        }  # an empty section is none
        self.assigned: dict[tuple[str, ...], str] = {}

    def line(self, path: Sequence[str | int]) -> int:
        """The line of the deepest part of `path` that the file has."""
        node, line = self.root, 1
        for step in path:
            if isinstance(node, yaml.MappingNode):
                found = [(key, value) for key, value in node.value if key.value == str(step)]
                if found:
                    line, node = found[0][0].start_mark.line + 1, found[0][1]
            elif isinstance(node, yaml.SequenceNode):
                parts = [part for number, part in enumerate(node.value) if str(number) == str(step)]
                if parts:
                    line, node = parts[0].start_mark.line + 1, parts[0]
        return line

    def set(self, assignment: str) -> None:
        """Override one value: `search.seed=3`. Raises ValueError if that is no assignment."""
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise ValueError(f"--set {assignment}: expected KEY=VALUE, such as search.seed=3")
        target = self.values
        steps = path.strip().split(".")
        for step in steps[:-1]:
            target = target.setdefault(step, {})
            if not isinstance(target, dict):
                raise ValueError(f"--set {assignment}: {step} holds a value, not a section")
        target[steps[-1]] = YamlFile(f"value: {text}", f"--set {assignment}").values.get("value")
        self.assigned[tuple(steps)] = assignment

    def validate(self, model: type[M]) -> M:
        """The model made of the values. Raises ValueError with a line for each thing that is wrong."""
        try:
            return model.model_validate(self.values)
        except ValidationError as error:
            raise ValueError("\n".join(self._complaints(error, model))) from None

    def complaint(self, place: Sequence[str], text: str) -> str:
        """A text about a place, which it names together with the line."""
        return f"{self._where(tuple(place))}: {'.'.join(place) or 'the config'}: {text}"

    def _complaints(self, error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
        by_place: dict[tuple[str, ...], list[str]] = {}
        for detail in error.errors():
            inner = getattr(detail.get("ctx", {}).get("error"), "place", ())
            place = self._place((*detail["loc"], *inner), missing=detail["type"] == "missing")
            found = by_place.setdefault(place, [])
            text = _complaint(detail, place, model)
            if text not in found:
                found.append(text)
        for place, texts in by_place.items():
            yield self.complaint(place, "; or ".join(texts))

    def _where(self, place: tuple[str, ...]) -> str:
        """The line of the file, or the assignment, that a complaint about `place` is about; the line with assignments,
        where they changed parts of it."""
        parts = ""
        for path, assignment in self.assigned.items():
            if place[: len(path)] == path:
                return f"--set {assignment}"
            if place and path[: len(place)] == place:
                parts += f" --set {assignment}"
        return f"{self.name}:{self.line(place)}" + (f" with{parts}" if parts else "")

    def _place(self, loc: tuple[int | str, ...], missing: bool) -> tuple[str, ...]:
        """The part of an error's location that the file has: without the names of union members, and with the last
        key where that is the one missing."""
        place, value = [], self.values
        for i, step in enumerate(loc):
            if isinstance(value, dict) and step in value:
                value = value[step]
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                value = value[step]
            elif not (missing and i == len(loc) - 1):
                continue
            place.append(str(step))
        return tuple(place)


def _complaint(detail: Any, place: tuple[str, ...], model: type[BaseModel]) -> str:
    if detail["type"] == "extra_forbidden":
        return f"unknown key{nearest(place[-1], _keys(model, place[:-1]))}"
    if detail["type"] == "missing":
        return "is missing"
    if detail["type"] == "value_error":
        error = detail["ctx"]["error"]
        return error.text if isinstance(error, SettingError) else str(error)
    found = detail["input"]
    shown = f", found {found!r}" if isinstance(found, (str, int, float, bool, type(None))) else ""
    return _EXPECTED.get(detail["type"], detail["msg"].replace("Input should be", "expected")) + shown


def _keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys that the section at `path` may have."""
    for step in path:
        field = _fields(model).get(step)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(_fields(model))


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """By the names that they have in a file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    """Every node below one, those behind an alias again each time it is used."""
    stack = [node]
    while stack:
        top = stack.pop()
        yield top
        if isinstance(top, yaml.MappingNode):
            stack += [part for pair in top.value for part in pair]
        elif isinstance(top, yaml.SequenceNode):
            stack += top.value


def read_yaml(path: Path) -> YamlFile:
    """Raises ValueError for a file that cannot be read or is not YAML."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"{path}: more than {MAX_BYTES:,} bytes, which no config has")
        return YamlFile(content.decode(), str(path))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file") from None
