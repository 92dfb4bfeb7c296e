"""TODO."""

import difflib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from jsonargparse import ArgumentParser
from pytorch_lightning import LightningDataModule

from .backbones import Backbone
from .diffusion.guidance import Guidance
from .errors import InputError

BASES = {"model.guidance": Guidance, "model.backbone": Backbone, "data": LightningDataModule}
"""Settings that name a class, and what it is one of."""
SOURCES = ["ImageList", "ImageDirectory", "ClassFolders", "HuggingFaceImages"]
ORDER = "give --config before the settings that it brings, a small/ one behind what it scales"


@contextmanager
def construction_errors() -> Iterator[None]:
    """An error in the constructor of a class that a setting names, without what jsonargparse wraps around it."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, RuntimeError, TypeError) as error:
        raise InputError(reason(error)) from error


def reason(error: Exception) -> str:
    """The line of a jsonargparse error that says what is wrong."""
    text = str(error)
    if said := inside(text):
        return said
    keys = ".".join(re.findall(r"key \"([\w.]+)\"", text))
    listed = text.rpartition("Errors:")[2].partition("Given value")[0]
    lines = [
        " ".join(part.split())
        for part in re.split(r"^\s*- ", listed, flags=re.MULTILINE)
        if part.strip()
    ]
    found = next((line for line in lines if "NoneType" not in line), " ".join(text.split()))
    found = re.sub(r"^Problem with given class_path '[\w.]+': ", "", found)
    return f"{keys}: {found}" if found.startswith("Expected") else found


def inside(text: str) -> str | None:
    """What is wrong with a class inside a setting, where it is a name that there is not."""
    if found := re.search(
        r"class_path '([\w.]+)'(?:(?!class_path).)*?Option '(\w+)[\w.]*' is not accepted",
        text,
        re.DOTALL,
    ):
        return unknown("setting", found[2], settings_of(found[1]))
    if found := re.search(
        r"key \"(?:ind|ood|train|calibration)\":\s*Expected a dot import path string: ?'?([\w.]+)",
        text,
    ):
        return unknown("source of images", found[1], SOURCES)
    found, given = (
        re.search(r"key \"([\w.]+)\":", text),
        re.search(r"import path string: ?'?([\w.]+)", text),
    )
    if found and given and found[1] in BASES:
        return unknown(
            f"class for {found[1]}", given[1], [sub.__name__ for sub in subclasses(BASES[found[1]])]
        )
    return None


def subclasses(base: type) -> list[type]:
    """The classes that may be named where one of these is asked for, of those that are imported."""
    below: list[type] = type.__subclasses__(base)
    is_hidden = inspect.isabstract(base) or base.__name__.startswith("_")
    here = [] if is_hidden or base is LightningDataModule else [base]
    return here + [found for sub in below for found in subclasses(sub)]


def unknown(kind: str, name: str, available: Iterable[str], parent: str = "") -> str:
    """One line on a name that there is not: what it may have been meant to be, and what there is."""
    available = list(available)
    if not available:
        return f"no {kind} {parent}{name}: {ORDER}"
    near = difflib.get_close_matches(name, available, 1)
    hint = f"; did you mean {parent}{near[0]}?" if near else ";"
    return f"no {kind} {parent}{name}{hint} there are: {', '.join(sorted(available))}"


def settings_of(class_path: str) -> list[str]:
    """Names of the settings of a class that has been imported."""
    module, _, name = class_path.rpartition(".")
    return ArgumentParser().add_class_arguments(getattr(sys.modules[module], name))
