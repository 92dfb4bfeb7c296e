"""What Windows lacks, hidden from this package on the machine of the tests."""

import builtins
import signal
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

MISSING_MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
MISSING_SIGNALS = ("SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2")
BLIND_PACKAGES = ("diffguard_pl", "filelock")
"""Packages that do not find these. Others look at the platform first, which stays what it is."""


def hide_posix() -> None:
    """Hide modules and signals until the process ends. Call it before the package is imported."""
    import_module = builtins.__import__
    signal_of_windows = ModuleType("signal")
    kept = {name: value for name, value in vars(signal).items() if name not in MISSING_SIGNALS}
    vars(signal_of_windows).update(kept)

    def import_as_on_windows(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        package = str((globals or {}).get("__package__")).partition(".")[0]
        if package in BLIND_PACKAGES:
            if name in MISSING_MODULES:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name == "signal":
                return signal_of_windows
        return import_module(name, globals, locals, fromlist, level)

    builtins.__import__ = import_as_on_windows
