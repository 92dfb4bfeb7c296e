"""MkDocs hook: generates two pages of docs/reference from the code, and locates the package.

The settings come from the parser of ``python -m diffguard_pl.test``, their descriptions from
the docstrings.
"""

import collections.abc
import inspect
import json
import logging
import re
import sys
import tempfile
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from docstrings import markdown  # noqa: E402

TRAINER = (
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "precision",
    "logger",
    "callbacks",
    "limit_test_batches",
    "default_root_dir",
    "deterministic",
    "benchmark",
    "profiler",
)
"""Settings of Lightning's Trainer that matter for a test."""
FETCHED = re.compile(
    r"""<(?:script|img|iframe|video|source|link rel="stylesheet")[^>]*"""
    r"""(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)"""
)

log = logging.getLogger("mkdocs.plugins.reference")
package = tempfile.TemporaryDirectory(prefix="diffguard-docs-")


@event_priority(100)  # before mkdocstrings reads it
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Assemble the package as installed; the repository has some of its folders at top level."""
    below = Path(package.name) / "diffguard_pl"
    if not below.exists():
        below.mkdir()
        beside = [ROOT / name for name in ("datamodules", "callbacks", "configs")]
        for path in [*(ROOT / "diffguard_pl").iterdir(), *beside]:
            (below / path.name).symlink_to(path)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [package.name]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "reference/settings.md": settings_page(),
        "reference/configs.md": configs_page(),
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Warn about pages that load resources from other servers; an error in a strict build."""
    for address in FETCHED.findall(output):
        log.warning("%s fetches %s", page.file.src_uri, address)
    return output


# -------------------------------------------------------------------------------------- settings.md


class Ready(Exception):
    """Raised when the command's parser is complete, before it starts a run."""


def command_parser() -> ArgumentParser:
    """Return the parser of ``python -m diffguard_pl.test``."""
    from diffguard_pl.commands.cli import RunCLI, command_line

    class ParserOnly(RunCLI):
        def parse_arguments(self, parser: ArgumentParser, args: Any) -> None:
            raise Ready(parser)

    arguments = sys.argv[1:]
    try:
        command_line(ParserOnly, [], [], "test")
    except Ready as ready:
        return ready.args[0]
    finally:
        sys.argv[1:] = arguments
    raise AssertionError


def settings_page() -> str:
    """Return settings.md: all settings of the test command, section by section."""
    from pytorch_lightning import LightningDataModule

    from diffguard_pl import callbacks, datamodules
    from diffguard_pl.backbones import Backbone
    from diffguard_pl.classifiers.classifier import Classifier
    from diffguard_pl.datamodules.sources import ImageFiles
    from diffguard_pl.diffusion.guidance import Guidance
    from diffguard_pl.evaluation.module import DiffGuardModule

    parser = command_parser()
    sections: dict[str, list[Any]] = {}
    for action in parser._actions:
        if action.help != "==SUPPRESS==" and (
            action.default != "==SUPPRESS==" or action.dest == "print_config"
        ):
            section, _, name = action.dest.rpartition(".")
            if name in TRAINER if section == "trainer" else action.dest != "data":
                sections.setdefault(section, []).append(action)
    if missing := set(TRAINER) - {action.dest.partition(".")[2] for action in sections["trainer"]}:
        raise ValueError(
            f"scripts/docs/reference.py: Lightning no longer has the settings {missing}"
        )

    choices = {
        "model.backbone": _choices(Backbone),
        "model.guidance": _choices(Guidance),
        "data": _choices(LightningDataModule),
    }
    sources = [
        kind
        for name in datamodules.__all__
        if issubclass(kind := getattr(datamodules, name), ImageFiles)
    ]
    sources.append(datamodules.HuggingFaceImages)
    shown = [
        Classifier,
        *(kind for kinds in choices.values() for kind in kinds),
        *sources,
        callbacks.WandbRun,
    ]
    nested = list(
        dict.fromkeys(
            part for kind in [DiffGuardModule, *shown] for part in _parts(_parser_of(kind))
        )
    )
    links = {kind.__name__: f"#{kind.__name__.lower()}" for kind in [*shown, *nested]}
    links |= {
        "Backbone": "#backbones",
        "Guidance": "#guidances",
        "LightningDataModule": "#data-modules",
        "Dataset": "#sources",
    }
    links |= {"Logger": "#loggers"}

    def table(actions: Iterable[Any]) -> str:
        rows = [_row(action, links) for action in actions]
        head = ["| setting | type | default | |", "|---|---|---|---|"]
        return '<div class="settings" markdown>\n\n' + "\n".join([*head, *rows]) + "\n\n</div>"

    def of_class(kind: type, level: str = "###") -> str:
        of = _parser_of(kind)
        actions = [action for action in of._actions if action.default != "==SUPPRESS=="]
        takes = table(actions) if actions else "No settings."
        return f"{level} {kind.__name__}\n\n{_summary(kind)}\n\n{takes}"

    lines = [
        "# Settings",
        "All settings of `python -m diffguard_pl.test`. They are set in a YAML file, given by "
        "`--config`, or on the command line "
        "as `--section.setting value`, which overrides the file. This page is generated from the "
        "command's parser. In a "
        "terminal, `--help` shows the same, `--print_config` prints the settings of a run as "
        "YAML, and "
        "`--model.guidance.help ClassifierGuidance` the settings of one class.",
        "A setting whose value is a class is given by class path and arguments in a file, and by "
        "name on the command line:",
        "```yaml\nmodel:\n  guidance:\n    class_path: "
        "diffguard_pl.diffusion.classifier_free_guidance.ClassifierFreeGuidance\n"
        "    init_args:\n      scale: 3.0\n```",
        "    python -m diffguard_pl.test --model.guidance ClassifierFreeGuidance "
        "--model.guidance.scale 3",
        "Your own classes are given by their class path, such as `my_package.MyDiffusion`. "
        "*required* settings have no default; "
        "the [shipped configs](configs.md) set them.",
        "## The command",
        table(sections[""]),
        "## model",
        _summary(DiffGuardModule),
        table(sections["model"]),
        of_class(Classifier),
        *(of_class(kind) for kind in nested if kind.__module__.endswith("combination")),
        "## Backbones",
        *(of_class(kind) for kind in choices["model.backbone"]),
        *(of_class(kind) for kind in nested if kind.__module__.endswith("architectures")),
        "## Guidances",
        *(of_class(kind) for kind in choices["model.guidance"]),
        "## Data modules",
        "`data` is one of these or your own `LightningDataModule`.",
        *(of_class(kind) for kind in choices["data"]),
        "## Sources",
        "The sources of `OODDataModule`: one of these, a torchvision dataset, or any torch "
        "`Dataset`.",
        *(of_class(kind) for kind in sources),
        "## Output",
    ]
    for name, actions in sections.items():
        if name in ("", "model", "trainer"):  # have sections of their own
            continue
        lines += [f"### {name}", _summary(parser.groups[name].group_class), table(actions)]
    lines += [
        "## trainer",
        "All settings of Lightning's `Trainer` are accepted; these matter for a test. "
        "Defaults are those of this command.",
        table(sections["trainer"]),
        "## Loggers",
        "`trainer.logger: true` is TensorBoard, `--config wandb` is this one; other Lightning "
        "loggers are given by class path.",
        of_class(callbacks.WandbRun),
    ]
    others = [
        kind for kind in nested if not kind.__module__.endswith(("combination", "architectures"))
    ]
    if others:
        raise ValueError(f"scripts/docs/reference.py: assign {others} to a section")
    return "\n\n".join(lines) + "\n"


def _choices(base: type) -> list[type]:
    """Return the classes of this package that a setting of this type accepts."""
    from diffguard_pl.config_errors import subclasses

    return [
        kind
        for kind in subclasses(base)
        if kind.__module__.startswith("diffguard_pl.") and not inspect.isabstract(kind)
    ]


def _parser_of(kind: type) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    return parser


def _parts(parser: ArgumentParser) -> Iterator[type]:
    """Yield the data classes that settings consist of, recursively."""
    for action in parser._actions:
        for kind in _inside(getattr(action, "_typehint", None)):
            if (
                isinstance(kind, type)
                and hasattr(kind, "__dataclass_fields__")
                and kind.__module__.startswith("diffguard_pl.")
            ):
                yield kind
                yield from _parts(_parser_of(kind))


def _inside(hint: Any) -> Iterator[Any]:
    yield hint
    for part in typing.get_args(hint):
        yield from _inside(part)


def _row(action: Any, links: dict[str, str]) -> str:
    hint = getattr(action, "_typehint", None)
    default = (
        "" if hint is None else "*required*" if action.required else f"`{_as_yaml(action.default)}`"
    )
    return f"| `{action.dest}` | {spelled(hint, links)} | {default} | {_text(action.help or '')} |"


def _text(text: str) -> str:
    """Return a help text as a table cell."""
    text = re.sub(r"\s*Default: .*", "", markdown(text), flags=re.DOTALL)
    text = re.sub(r"``([^`]*)``", r"`\1`", " ".join(text.split()))
    return text.replace("|", r"\|")


def _as_yaml(value: Any) -> str:
    return (
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace('"', "")
    )


def spelled(hint: Any, links: dict[str, str]) -> str:
    """Return a type in Markdown without module names: ``list[str] or null``."""
    if hint is None:
        return ""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        parts = [part for part in typing.get_args(hint) if part is not types.NoneType]
        some = list(dict.fromkeys(spelled(part, links) for part in parts))
        return " or ".join(some + ["`null`"] * (types.NoneType in typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(hint))
    inside = [kind for kind in _inside(hint) if getattr(kind, "__name__", "") in links]
    if inside:
        name = inside[0].__name__
        return f"[`{_plain(hint)}`]({links[name]})"
    return f"`{_plain(hint)}`"


def _plain(hint: Any) -> str:
    if hint is ...:
        return "..."
    if hint is types.NoneType:
        return "null"
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, types.UnionType) or origin is typing.Union:
        return " or ".join(_plain(part) for part in inside)
    if origin is None:
        return getattr(hint, "__name__", str(hint))
    names = {
        collections.abc.Sequence: "list",
        collections.abc.Mapping: "dict",
        collections.abc.Iterable: "list",
    }
    outer = names.get(origin, getattr(origin, "__name__", str(origin)))
    inner = ", ".join(_plain(part) for part in inside)
    return f"{outer}[{inner}]"


def _summary(kind: type) -> str:
    """Return the first paragraph of a docstring."""
    return _paragraph(inspect.getdoc(kind) or "")


def _paragraph(text: str) -> str:
    return re.sub(r"``([^`]*)``", r"`\1`", " ".join(markdown(text).split("\n\n")[0].split()))


# --------------------------------------------------------------------------------------- configs.md


def configs_page() -> str:
    """Return configs.md: the shipped configs with their first sentences, bases and contents."""
    from diffguard_pl.config import config_names, find_config

    files = {name: find_config(name) for name in config_names()}
    lines = [
        "# Shipped configs",
        "Each is a file of `configs/` and part of the package. `python -m diffguard_pl.test "
        "--config NAME` runs it, except for "
        "`wandb` and `small/`, which modify another config, and `sweeps/`, which are W&B sweep "
        "files. Those of `analysis/` are for `diffguard-pl analyze`. "
        "Settings that a file omits come from its `base`.",
        "\n".join(
            [
                "| config | base | |",
                "|---|---|---|",
                *(_config_row(name, file) for name, file in files.items()),
            ]
        ),
        "## The files",
        "Every setting: [Settings](settings.md). With all defaults filled in: `--print_config`.",
        *(f"### {name}\n\n```yaml\n{file.read_text()}```" for name, file in files.items()),
    ]
    return "\n\n".join(lines) + "\n"


def _config_row(name: str, file: Path) -> str:
    text = file.read_text()
    comment = " ".join(line.removeprefix("#").strip() for line in _comment(text.splitlines()))
    first = re.split(r"(?<=[.:])\s+(?=[A-Z])", comment)[0].rstrip(":")
    base = (yaml.safe_load(text) or {}).get("base")
    anchor = re.sub(r"[^\w\s-]", "", name).lower()
    built_on = f"`{base}`" if base else ""
    return f"| [`{name}`](#{anchor}) | {built_on} | {_text(first)} |"


def _comment(lines: Sequence[str]) -> list[str]:
    number = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return list(lines[:number])
