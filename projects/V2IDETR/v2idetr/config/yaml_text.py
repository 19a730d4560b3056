"""Reading and writing YAML configs without running code or guessing types.

`yaml.safe_load` runs no code, but YAML 1.1 reads `off` as False, `1:30` as 90, `2024-01-01` as a
date and `1e-4` as a string, and lets the second of two equal keys win. The loader here keeps the
safe constructors and follows the YAML 1.2 core schema instead, and refuses repeated keys.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"
    r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """Safe loader with the YAML 1.2 core schema and unique keys."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's own protocol)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is not a string; quote it", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or 1.2 could read as something else; writes no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", _NULL, [*"~nN", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, [*"tTfF"])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, [*"-+0123456789"])
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, [*"-+.0123456789"])
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, [*"-+.0123456789"])


def parse_yaml(text: str) -> Any:
    """YAML text to plain Python values (dict, list, str, int, float, bool, None).

    Raises:
        ValueError: the text is not YAML, repeats a key, or has a tag that would build an object.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def dump_yaml(value: Any) -> str:
    """Plain Python values to YAML text that `parse_yaml` reads back to equal values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
