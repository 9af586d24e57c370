"""YAML text to plain values, keeping the line of every key."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

Location = tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: 01:00:00 and yes stay text, which 1.1 would make 3600 and true."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first]
    )


@dataclass(slots=True)
class Source:
    """The values of a YAML document, the line of each key, and what is wrong with the text itself."""

    values: Any = None
    lines: dict[Location, int] = field(default_factory=dict)
    faults: list[tuple[Location, str]] = field(default_factory=list)

    def line(self, where: Location) -> int:
        """The line of a key, or of the nearest section around it."""
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, 1)


def read_yaml(text: str) -> Source:
    """Parse YAML; a syntax error raises yaml.YAMLError, doubled keys are listed as faults."""
    source = Source()
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            source.values = _value(loader, node, (), source, ())
    finally:
        loader.dispose()
    return source


def _value(loader: _Loader, node: yaml.Node, where: Location, source: Source, above: tuple[int, ...]) -> Any:
    source.lines.setdefault(where, node.start_mark.line + 1)
    if id(node) in above:
        source.faults.append((where, "an alias holds itself"))
        return None
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                source.faults.append((where, "a key should be a plain word"))
                continue
            key = key_node.value
            line = key_node.start_mark.line + 1
            here = (*where, key)
            if key in result:
                source.faults.append(
                    (
                        where,
                        f"line {line}: {key} stands here a second time, first on line {source.lines[here]}",
                    )
                )
                continue
            source.lines[here] = line
            result[key] = _value(loader, value_node, here, source, above)
        return result
    if isinstance(node, yaml.SequenceNode):
        items = enumerate(node.value)
        return [_value(loader, item, (*where, str(n)), source, above) for n, item in items]
    return loader.construct_object(node)
