"""A parser's errors in one line. Only this file interprets the prose of argparse and jsonargparse.

`EXPLANATIONS` maps patterns of their messages to our lines. A message that matches none is shown
unchanged.
"""

import difflib
import inspect
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module

from .errors import InputError, one_line

CLASSES = {
    "model.guidance": (
        "diffguard_pl.diffusion.guidance.Guidance",
        "diffguard_pl.diffusion.classifier_guidance",
        "diffguard_pl.diffusion.classifier_free_guidance",
    ),
    "model.backbone": ("diffguard_pl.backbones.base.Backbone", "diffguard_pl.backbones"),
    "data": ("pytorch_lightning.LightningDataModule", "diffguard_pl.datamodules"),
}
"""Settings that name a class: its base class, then the modules with the package's classes."""

SOURCES = ("ImageList", "ImageDirectory", "ClassFolders", "HuggingFaceImages")
"""Classes of image sources, which share no base class."""

CONFIG_FIRST = (
    "give --config before the settings that it defines, and small/ configs after what they scale"
)


@contextmanager
def parser_errors(prefix: str = "") -> Iterator[None]:
    """Turn the errors of a parser, and of the classes that it instantiates, into `InputError`.

    Args:
        prefix: Text in front of a parser's error, such as the name of the config.
    """
    try:
        yield
    except InputError:
        raise
    except ArgumentError as error:
        raise InputError(prefix + explain(str(error))) from error
    except (OverflowError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(prefix + explain(str(error))) from error
    # what constructors of other libraries raise for a wrong value
    except (AssertionError, ImportError, LookupError) as error:
        text = " ".join(str(error).split())
        raise InputError(
            f"{prefix}a class_path cannot be built ({type(error).__name__}: {text}); check its "
            "settings"
        ) from error


def explain(message: str, settings: Collection[str] = ()) -> str:
    """Say in one line what is wrong.

    Args:
        message: Text of a parser's error.
        settings: Names of the settings that the parser knows, in dotted form.
    """
    text = " ".join(message.split())
    for pattern, answer in EXPLANATIONS.items():
        found = re.search(pattern, text)
        if found and (line := answer(found, settings)):
            return one_line(line)
    return one_line(text)


def unknown(kind: str, name: str, available: Iterable[str], parent: str = "") -> str:
    """Say in one line that a name is unknown: the closest one, and those to choose from.

    Args:
        kind: What the name should be the name of.
        name: The unknown name.
        available: Known names; empty if the class that defines them has not been given yet.
        parent: Dotted prefix of the names, such as ``model.``.
    """
    available = sorted(available)
    if not available:
        return f"unknown {kind} {parent}{name}; {CONFIG_FIRST}"
    near = difflib.get_close_matches(name, available, 1)
    hint = f"; did you mean {parent}{near[0]}?" if near else ";"
    return f"unknown {kind} {parent}{name}{hint} choose from: {', '.join(available)}"


def import_classes(setting: str) -> None:
    """Import the package's classes for a setting, so that they may be named without their module.

    Args:
        setting: Key of `CLASSES`.
    """
    for module in CLASSES[setting][1:]:
        import_module(module)


def subclasses(base: type) -> list[type]:
    """List the imported classes that may be named where an instance of ``base`` is needed."""
    is_hidden = inspect.isabstract(base) or base.__name__.startswith("_")
    found = [] if is_hidden else [base]
    below: list[type] = type.__subclasses__(base)
    for subclass in below:
        found += subclasses(subclass)
    return found


def _setting_of_class(found: re.Match[str], _: Collection[str]) -> str:
    class_path, option = found.groups()
    module, _, name = class_path.rpartition(".")
    built = getattr(sys.modules[module], name)
    line = unknown("setting", option, _settings_of(built))
    kinds = {parameter.kind for parameter in inspect.signature(built).parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        line += f"; other settings that {name} passes on go into dict_kwargs"
    return line


def _keyword(found: re.Match[str], _: Collection[str]) -> str:
    name, option = found.groups()
    return f"unknown setting {option} of {name}; correct it in init_args or dict_kwargs"


def _source(found: re.Match[str], _: Collection[str]) -> str:
    return unknown("source of images", found[1], SOURCES)


def _class(found: re.Match[str], _: Collection[str]) -> str:
    setting, name = found.groups()
    import_classes(setting)
    base_path = CLASSES[setting][0]
    base_module, _, base_name = base_path.rpartition(".")
    base = getattr(import_module(base_module), base_name)
    names = {known.__name__ for known in subclasses(base)} - {"LightningDataModule"}
    return unknown(f"class for {setting}", name, names)


def _class_not_given(found: re.Match[str], _: Collection[str]) -> str:
    return f"{found[1]}: its class is not known yet; {CONFIG_FIRST}"


def _setting(found: re.Match[str], settings: Collection[str]) -> str | None:
    """Answer an unknown setting with the settings below the longest known part of its name."""
    if not settings:
        return None
    key = ".".join(found.groups())
    parent = key
    while parent and not any(name.startswith(f"{parent}.") for name in settings):
        parent = parent.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    siblings = {
        name.removeprefix(prefix).split(".")[0] for name in settings if name.startswith(prefix)
    }
    return unknown("setting", key.removeprefix(prefix).split(".")[0], siblings, prefix)


def _first_error(found: re.Match[str], _: Collection[str]) -> str:
    """Answer a union's list of errors, one a type, with the first that is not about None."""
    keys, listed = found.groups()
    key = ".".join(re.findall(r"key \"([\w.]+)\"", keys))
    errors = [line.strip() for line in re.split(r"(?:^|\s)- ", listed) if line.strip()]
    error = next((line for line in errors if "NoneType" not in line), errors[0])
    error = re.sub(r"^Problem with given class_path '[\w.]+': ", "", error)
    if wrong := re.match(r"Expected a <class '(\w+)'>\. Got value: (.*)$", error):
        return _must_be(key, *wrong.groups())
    return f"{key}: {error}" if error.startswith("Expected") else error


def _wrong_value(found: re.Match[str], _: Collection[str]) -> str:
    key = ".".join(re.findall(r"key \"([\w.]+)\"", found[0]))
    return _must_be(key, found[1], found[2])


def _must_be(key: str, kind: str, value: str) -> str:
    remedy = "; put it in quotes" if kind == "str" else ""
    return f"{key}: must be {kind}, not {value}{remedy}"


EXPLANATIONS: dict[str, Callable[[re.Match[str], Collection[str]], str | None]] = {
    # a setting that a class inside a setting does not have
    r"class_path '([\w.]+)'(?:(?!class_path).)*?Option '(\w+)[\w.]*' is not accepted": (
        _setting_of_class
    ),
    r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'": _keyword,
    # a class that does not exist
    r"key \"(?:ind|ood|train|calibration)\": .*?import path string: ?'?([\w.]+)": _source,
    r"key \"(model\.guidance|model\.backbone|data)\":.*?import path string: ?'?([\w.]+)": _class,
    # a setting of a class before the class
    r"key \"([\w.]+)\": Expected an instantiatable class.* is abstract": _class_not_given,
    # a setting that the parser does not have
    r"[Uu]nrecognized arguments: --([\w.]+)": _setting,
    r"ambiguous option: --([\w.]+)": _setting,
    r"Option '([\w.]+)' is not accepted": _setting,
    r"Group '([\w.]+)' does not accept option '([\w.]+)'": _setting,
    # a value of another type
    r"^(.*)Errors: (- .*?)(?: Given value|$)": _first_error,
    r"key .*Expected a <class '(\w+)'>\. Got value: (.*)$": _wrong_value,
}
"""Maps the pattern of a message, with single spaces, to the function that writes our line."""


def _settings_of(built: Callable) -> list[str]:
    """List the settings of a class, or of a function that returns an instance."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    if inspect.isclass(built):
        return parser.add_class_arguments(built)
    return parser.add_function_arguments(built)
