"""Names in YAML, which are text: YAML reads ``2012``, ``no`` and ``1e3`` as something else."""

import json
import re
from collections.abc import Iterator

import yaml

FastLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SETTINGS_OF_NAMES = ("classes", "image", "label", "name", "only", "split")
"""Settings whose values are names, or lists of names."""
TEXT, MERGE, NULL = (f"tag:yaml.org,2002:{name}" for name in ("str", "merge", "null"))


def quote_names(text: str) -> str:
    """Return YAML with quotes around every key and name that YAML might not read as text.

    Raises:
        yaml.YAMLError: The text is not YAML.
    """
    text = text.removeprefix("\ufeff")  # a byte order mark is not counted in the places of nodes
    root = yaml.compose(text, Loader=FastLoader)
    names = [node for node in _names(root) if _needs_quotes(node)]
    # from the last one on, so that the places of the others stay
    for node in sorted(names, key=lambda node: node.start_mark.index, reverse=True):
        start, end = node.end_mark.index - len(node.value), node.end_mark.index
        if text[start:end] == node.value:  # an anchor or a tag may come before it
            text = text[:start] + json.dumps(node.value, ensure_ascii=False) + text[end:]
    return text


def _names(root: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """Yield the keys of all mappings, and the names that settings have."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        for key, value in node.value:
            waiting.append(value)
            if not isinstance(key, yaml.ScalarNode):
                continue
            yield key
            if key.value in SETTINGS_OF_NAMES:
                items = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for item in items:
                    if isinstance(item, yaml.ScalarNode) and item.tag != NULL:
                        yield item


def _needs_quotes(node: yaml.ScalarNode) -> bool:
    # loaders differ in the numbers that they know, all of which begin like one
    is_number = re.match(r"[-+.\d]", node.value)
    return not node.style and node.tag != MERGE and bool(node.tag != TEXT or is_number)
