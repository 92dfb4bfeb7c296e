"""YAML files of users: a file that cannot be read as settings is refused in one line.

YAML can refer to itself, and a few hundred bytes of it can stand for billions of values. Such text
is found by its events, one after the other, before anything is built from it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import yaml

from .errors import InputError
from .yaml_names import FastLoader, quote_names

MAX_DEPTH = 40
"""Lists and mappings inside each other. The deepest config of this package has 7."""
MAX_VALUES = 100_000
"""Values of a file, where an alias counts as often as it is used."""
MAX_BYTES = 10_000_000
TIMESTAMP = "tag:yaml.org,2002:timestamp"


class RefusedYAML(yaml.YAMLError):
    """YAML that is valid, but not as settings."""


class SettingsLoader(yaml.SafeLoader):
    """Loader that leaves dates as text, as the command line's parser does."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_yaml(file: Path, kind: str = "config") -> Any:
    """Read a YAML file, in which keys and names are text.

    Args:
        file: Path of the file.
        kind: What the file is, for the message. Defaults to ``config``.

    Raises:
        InputError: The file cannot be read, or is not YAML that settings can be read from.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise InputError(f"{kind} {file}: too large for settings; give a YAML file")
        return load_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{kind} {file}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{kind} {file}: not UTF-8 text; save it as UTF-8") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        if not isinstance(error, RefusedYAML):
            reason = f"not YAML: {reason}"
        raise InputError(f"{kind} {file}: {reason}") from error


def load_yaml(text: str) -> Any:
    """Return the content of a YAML text, in which keys and names are text.

    Raises:
        yaml.YAMLError: The text is not YAML, or is refused as by :func:`check_yaml`, or a mapping
            has a key twice.
    """
    check_yaml(text)
    loader = SettingsLoader(quote_names(text))
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _check_keys(root)
        with _wrong_tags_refused():
            return loader.construct_document(root)
    finally:
        loader.dispose()


@cache  # once in a process
def make_parser_read_settings() -> None:
    """Make jsonargparse check the YAML of config files and of the command line, and keep names."""
    from jsonargparse import get_loader, set_loader

    load = get_loader("yaml")

    def load_checked(text: str) -> Any:
        check_yaml(text)
        with _wrong_tags_refused():
            return load(quote_names(text))

    set_loader("yaml", load_checked, exceptions=(yaml.YAMLError,))


def check_yaml(text: str) -> None:
    """Check that a YAML text is small when all its aliases are written out.

    Raises:
        yaml.YAMLError: The text is not YAML, refers to itself, nests too deep, or stands for too
            many values.
    """
    document = _Node(None)
    open_nodes = [document]
    anchored: dict[str, _Node] = {}
    for event in yaml.parse(text, Loader=FastLoader):
        line = event.start_mark.line + 1
        node = None
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in [one.anchor for one in open_nodes]:
                raise RefusedYAML(f"*{event.anchor} in line {line} refers to itself; remove it")
            if event.anchor not in anchored:  # libyaml's loader would not name it
                problem = f"found undefined alias {event.anchor!r}"
                raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
            node = anchored[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            if len(event.value) < len(text):  # not the whole text again
                check_text(event.value)
            node = _Node(event.anchor)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append(_Node(event.anchor))
        elif isinstance(event, yaml.CollectionEndEvent):
            node = open_nodes.pop()
        if node is not None:
            open_nodes[-1].add(node)
            if node.anchor:
                anchored[node.anchor] = node
        if len(open_nodes) + open_nodes[-1].height > MAX_DEPTH:
            raise RefusedYAML(f"line {line} nests more than {MAX_DEPTH} deep; flatten it")
        if open_nodes[-1].values > MAX_VALUES:
            raise RefusedYAML(
                f"more than {MAX_VALUES} values up to line {line}, aliases written out; shorten it"
            )


def check_text(text: str) -> None:
    """Check a value that jsonargparse may read as YAML, where a setting is a list or mapping.

    Raises:
        RefusedYAML: As :func:`check_yaml`.
    """
    if "*" not in text and text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    try:
        check_yaml(text)
    except RefusedYAML:
        raise
    except yaml.YAMLError:
        return  # text that is no YAML is read as text


def check_arguments(args: Sequence[str]) -> None:
    """Check the values of command-line arguments, ``--setting VALUE`` or ``--setting=VALUE``.

    Raises:
        InputError: A value refers to itself, nests too deep, or stands for too many values.
    """
    option = "arguments"
    for argument in args:
        value = argument
        if argument.startswith("--"):
            option, _, value = argument.partition("=")
        try:
            check_text(value)
        except RefusedYAML as error:
            raise InputError(f"{option}: {error}") from error


@dataclass
class _Node:
    """Value, list or mapping.

    Attributes:
        anchor: Name by which aliases refer to it, or None.
        values: Number of values in it, itself included.
        height: Number of levels below it.
    """

    anchor: str | None
    values: int = 1
    height: int = 0

    def add(self, child: "_Node") -> None:
        self.values += child.values
        self.height = max(self.height, child.height + 1)


@contextmanager
def _wrong_tags_refused() -> Iterator[None]:
    """Turn errors of a tag such as ``!!int`` on a value of another type into `RefusedYAML`."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RefusedYAML(f"a value contradicts its tag ({error})") from error


def _check_keys(root: yaml.Node) -> None:
    """Raise an error where a mapping has a key twice: YAML would drop the first one silently."""
    for node in _nodes(root):
        if not isinstance(node, yaml.MappingNode):
            continue
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            if key.value in seen:
                line = key.start_mark.line + 1
                raise RefusedYAML(f"{key.value!r} in line {line} is set twice; remove one of them")
            seen.add(key.value)


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Yield each node once."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
