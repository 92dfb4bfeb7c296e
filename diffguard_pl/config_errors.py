"""A parser's errors in one line. Only this file interprets the prose of argparse and jsonargparse.

`EXPLANATIONS` maps patterns of their messages to our lines. A message that matches none is shown
unchanged.
"""

import difflib
import inspect
import math
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import InputError, one_line, shortened

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

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
TYPE_NAMES = {
    "Iterable": "list",
    "Mapping": "mapping",
    "NoneType": "null",
    "Sequence": "list",
    "dict": "mapping",
    "tuple": "list",
}
"""Names of Python's types in YAML, where they differ."""
MAX_VALUE = 200
"""Most characters of a value in a message."""
MAX_MESSAGE = 10_000
"""Most characters of a message that are read. Patterns may take time quadratic in its length."""


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
    except (ArgumentError, ArithmeticError, RuntimeError, TypeError, ValueError) as error:
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
    text = shortened(" ".join(message.split()), MAX_MESSAGE)
    for pattern, answer in EXPLANATIONS.items():
        found = re.search(pattern, text)
        if found and (line := answer(found, settings)):
            return one_line(line)
    return one_line(re.sub(r"Parser key \"([\w.]+)\": ", r"\1: ", text))


def check_values(parser: "ArgumentParser", config: "Namespace") -> None:
    """Raise an `InputError` for a null, NaN or single value that the parser has let pass.

    Args:
        parser: Parser of all settings.
        config: Parsed settings.
    """
    defaults = parser.get_defaults()
    for group in parser.groups or {}:
        value = config.get(group)
        if value is None and defaults.get(group) is not None:
            config[group] = defaults[group]  # a section in which all lines are comments
        elif not isinstance(value, Mapping | type(config) | None):
            raise InputError(
                f"{group}: must map settings, not be {shortened(repr(value), MAX_VALUE)}"
            )
    with parser_errors():
        parser.validate(config, False)
    _check_values_of_classes(config.as_dict(), "")


def _check_values_of_classes(settings: Any, prefix: str) -> None:
    """Raise an `InputError` for a null that a class does not take, or a number that is none."""
    items = settings.items() if isinstance(settings, dict) else enumerate(settings)
    for name, value in items:
        if isinstance(value, dict | list):
            _check_values_of_classes(value, f"{prefix}{name}.")
        if prefix.startswith(("model.", "data.")) and _is_not_finite(value):
            raise InputError(f"{prefix}{name}: must be a finite number, not {value}")
        if isinstance(value, dict) and isinstance(value.get("class_path"), str):
            arguments = (value.get("init_args") or {}).items()
            nulls = [argument for argument, given in arguments if given is None]
            _check_nulls_of_class(value["class_path"], nulls, f"{prefix}{name}")


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _check_nulls_of_class(class_path: str, nulls: Collection[str], key: str) -> None:
    from jsonargparse import ArgumentParser, Namespace

    module, _, name = class_path.rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)
    if not nulls or not isinstance(kind, type):
        return
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "class", fail_untyped=False)
    try:
        parser.validate(Namespace({f"class.{null}": None for null in nulls}), False, True)
    except TypeError as error:
        message = str(error).replace('key "class.', f'key "{key}.')
        raise InputError(explain(message)) from error


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


def _union(found: re.Match[str], settings: Collection[str]) -> str:
    """Answer a list of errors, one for each type that a setting may have."""
    keys, listed, value = found.groups()
    key = _key(keys)
    errors = [error.strip() for error in re.split(r"(?:^|\s)- ", listed) if error.strip()]
    # Any other error than that of the type is about a part of the value.
    for error in errors:
        if not re.fullmatch(r"Expected a [<t][^ ]* ?[^ ]*>|Expected a typing.Literal.*", error):
            # A class that checks its own settings names them.
            return explain(f'Parser key "{key}": {error}' if key else error, settings)
    return _wrong_type(key, map(_type_name, errors), value)


def _union_of_classes(found: re.Match[str], settings: Collection[str]) -> str | None:
    """Answer a list of errors, one for each class whose settings a mapping may have."""
    keys, listed, _, value = found.groups()
    problem_of_class = (
        r"- Problem with given class_path '([\w.]+)': (.*?)(?= - Problem| - Expected|$)"
    )
    problems = dict(re.findall(problem_of_class, listed))

    # A class that has all of the settings: the value of one is wrong.
    for text in problems.values():
        if "is not accepted" not in text:
            return explain(f"{keys}{text}", settings)

    # Else those are meant that have the most of them.
    given = re.findall(r"(?:key=)?'(\w+)'[:,]", value)
    known: dict[int, set[str]] = {}
    for class_path in problems:
        module, _, name = class_path.rpartition(".")
        names = set(_settings_of(getattr(sys.modules[module], name)))
        known.setdefault(len(names.intersection(given)), set()).update(names)
    most = known[max(known)]
    option = next((name for name in given if name not in most), None)
    return option and unknown("setting", option, most)


def _type(found: re.Match[str], _: Collection[str]) -> str:
    keys, error, value = found.groups()
    return _wrong_type(_key(keys), [_type_name(error)], value)


def _wrong_type(key: str, types: Iterable[str], value: str) -> str:
    *others, last = dict.fromkeys(types)
    wanted = f"{', '.join(others)} or {last}" if others else last
    remedy = "; put it in quotes" if "str" in wanted.split() else ""
    return f"{key}: must be {wanted}, not {shortened(value, MAX_VALUE)}{remedy}"


def _type_name(error: str) -> str:
    """Return the name of a type in ``Expected a <class 'collections.abc.Sequence'>``."""
    if found := re.search(r"typing\.Literal\[(.*?)\]", error):
        return found[1]
    found = re.search(r"<class '(?:[\w.]*\.)?(\w+)'>", error)
    return TYPE_NAMES.get(found[1], found[1]) if found else error


def _subclass(found: re.Match[str], _: Collection[str]) -> str:
    keys, name = found.groups()
    return f"{_key(keys)}: must be a {name}, given as class_path and init_args"


def _required(found: re.Match[str], _: Collection[str]) -> str:
    keys, class_path, names = found.groups()
    if class_path is None:
        return f"not set: {names}; give a config that sets them"
    return f"{_key(keys)}: {class_path.rpartition('.')[2]} needs a value of {names}"


def _not_a_mapping(found: re.Match[str], _: Collection[str]) -> str:
    key, value = found.groups()
    return f"{key}: must map settings, or be the path of a file, not {value}"


def _key(text: str) -> str:
    """Return the dotted name of the setting in which a message's ``Parser key`` are nested."""
    return ".".join(re.findall(r"key \"([\w.]+)\"", text))


EXPLANATIONS: dict[str, Callable[[re.Match[str], Collection[str]], str | None]] = {
    # settings of one of several classes; the same class twice is not meant
    r"^(.*)Errors: (- Problem with given class_path ('[\w.]+'): (?:(?!Errors:).)*? "
    r"- Problem with given class_path (?!\3).*?) Given value type: .*? Given value: (.*?)"
    r"(?: - Expected a .*)?$": _union_of_classes,
    # a setting that a class inside a setting does not have
    r"class_path '([\w.]+)'(?:(?!class_path).)*?Option '(\w+)[\w.]*' is not accepted": (
        _setting_of_class
    ),
    r"\b(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'": _keyword,
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
    # a setting without a value
    r"^(.*?)(?:given class_path '([\w.]+)': )?the following arguments are required: ([\w, .]+\w)": (
        _required
    ),
    # a value of another type
    # of unions within unions, the innermost
    r"^(.*)Errors: (- .*?) Given value type: .*? Given value: (.*?)(?: - Expected a .*)?$": _union,
    r"^(.*)(Expected a [<t].*?)\. Got value: (.*)$": _type,
    r"^(.*)Not a valid subclass of (\w+)": _subclass,
    r"key \"([\w.]+)\": Unable to load config '(.*?)'": _not_a_mapping,
}
"""Maps the pattern of a message, with single spaces, to the function that writes our line."""


def _settings_of(built: Callable) -> list[str]:
    """List the settings of a class, or of a function that returns an instance."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    if inspect.isclass(built):
        return parser.add_class_arguments(built)
    return parser.add_function_arguments(built)
