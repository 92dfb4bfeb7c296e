"""Weights & Biases as the logger of a run."""

import json
import os
import secrets
import shlex
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_utilities.core.imports import RequirementCache
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from diffguard_pl.errors import InputError, choose

MODES = ["online", "offline", "disabled"]
WANDB = RequirementCache("wandb")
PROBE_SECONDS = 5.0
"""Seconds for the server to answer before a run begins."""
MAX_ERROR = 160
"""Maximum number of characters of W&B's error messages."""


class WandbRun(WandbLogger):
    """A run on W&B, or on disk, to be uploaded later, without an API key or a server.

    It never asks for input and never hangs. Defaults are taken from ``WANDB_PROJECT``,
    ``WANDB_ENTITY``, ``WANDB_NAME``, ``WANDB_RUN_GROUP``, ``WANDB_TAGS`` and ``WANDB_MODE``.

    Args:
        project: Project of the run. Defaults to ``diffguard``.
        entity: User or team. Defaults to the user's default.
        name: Name of the run. Defaults to that of its folder, config and time.
        group: Group of runs that belong together.
        tags: Tags of the run.
        mode: ``online``, ``offline`` or ``disabled``. Defaults to online with an API key and a
            server that answers, else offline.
        init_timeout: Seconds to wait for the server when a run begins.
        finish_timeout: Seconds to wait for uploads when it ends. The rest stays on disk.
        save_dir: Folder of W&B's files. The commands use the run folder.

    Raises:
        InputError: wandb is not installed, or a setting is out of range.
    """

    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        mode: str | None = None,
        init_timeout: float = 20.0,
        finish_timeout: float = 30.0,
        save_dir: str = ".",
    ):
        if not WANDB:
            raise InputError("trainer.logger: WandbRun needs wandb; pip install wandb")
        if mode is not None:
            choose("trainer.logger.mode", mode, MODES)
        if min(init_timeout, finish_timeout) <= 0:
            raise InputError(
                f"trainer.logger: {init_timeout=}, {finish_timeout=}; must be more than 0 seconds"
            )
        super().__init__(
            name=name or os.environ.get("WANDB_NAME"),
            save_dir=save_dir,
            id=os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4),
            project=project or os.environ.get("WANDB_PROJECT") or "diffguard",
            entity=entity,
            group=group,
            tags=list(tags) or None,
        )
        self.mode = mode
        self.timeouts = {"init_timeout": init_timeout, "finish_timeout": finish_timeout}
        self._online = False
        self._gone = False

    def attach(
        self, folder: str | Path, config: Mapping[str, Any] | None = None, run_id: str | None = None
    ) -> None:
        """Record the run of a folder. Call this before the experiment is first used.

        Args:
            folder: Folder of the run; W&B's files go to ``wandb`` in it.
            config: Settings of the run.
            run_id: ID of the W&B run to resume. Defaults to a new one.
        """
        folder = Path(folder).absolute()
        self._save_dir = self._wandb_init["dir"] = str(folder)
        self._name = self._wandb_init["name"] = (
            self._wandb_init["name"] or f"{folder.parent.name}/{folder.name}"[-128:]
        )
        if config is not None:
            self._wandb_init["config"] = json.loads(json.dumps(config, default=str))
        if run_id is not None:
            self._id = self._wandb_init["id"] = run_id

    @property
    def run_id(self) -> str:
        """ID of the W&B run; :meth:`attach` takes it when the run is resumed."""
        return str(self._id)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``wandb.Run``, which begins on first use."""
        if self._experiment is None:
            import wandb

            try:
                self._begin()
            except InputError:
                raise
            except (wandb.Error, ValueError) as error:  # an invalid setting or variable
                message = " ".join(str(error).split())[: 2 * MAX_ERROR]
                raise InputError(f"trainer.logger: {message}") from error
        return self._experiment

    @rank_zero_only
    def continue_offline_if_unreachable(self) -> None:
        """Continue the same W&B run on disk if its server does not answer any more.

        Otherwise each picture and artifact would wait for it.
        """
        if self._experiment is None or not self._online:
            return
        reason = _unreachable(self._experiment.settings.base_url)
        if reason is not None:
            self._finish(0)
            self._init("offline")
            self._print_offline(reason)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics. The run goes on when W&B's own process has ended."""
        if self._gone:
            return
        try:
            super().log_metrics(dict(metrics), step)
        except Exception as error:  # of many kinds
            self._gone = True
            _print(f"logging has ended: {_one_line(error)}; the run continues without it")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Upload the rest, for at most ``finish_timeout`` seconds.

        wandb's files are complete when the process has ended.
        """
        try:
            super().finalize(status)
            if self._experiment is not None and not self._finish(0 if status == "success" else 1):
                self._print_offline("not everything could be uploaded")
        except Exception as error:  # of many kinds
            _print(f"its run could not be ended: {_one_line(error)}")

    def _finish(self, exit_code: int) -> bool:
        """End the current W&B run; return whether it could be uploaded in time."""
        run, self._experiment = self._experiment, None
        assert run is not None
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError:
            return False
        return True

    def _begin(self) -> None:
        import wandb

        wandb.setup(settings=wandb.Settings(**_quiet()))
        mode, reason = self._choose_mode()
        if mode == "online":
            try:
                self._init("online")
                _print(str(self.experiment.url))
                return
            except Exception as error:  # of many kinds: an invalid key, no answer in time
                reason = _one_line(error)
                if self._requested_mode() == "online":
                    raise InputError(f"trainer.logger.mode=online: {reason}") from error
                wandb.teardown()  # frees the ID of the run
        try:
            self._init("disabled" if mode == "disabled" else "offline")
        except wandb.Error as error:
            raise InputError("trainer.logger: " + " ".join(str(error).split())) from error
        if mode != "disabled":
            self._print_offline(f"offline, {reason}")

    def _print_offline(self, reason: str) -> None:
        # a resumed run has several parts, and some of them may have begun online
        folder = shlex.quote(str(Path(self._wandb_init["dir"]) / "wandb"))
        _print(f"{reason}; to upload the run later: wandb sync --include-online {folder}")

    def _init(self, mode: str) -> None:
        import wandb

        # wandb would write to /tmp if the folder did not exist
        Path(self._wandb_init["dir"]).mkdir(parents=True, exist_ok=True)
        settings = _quiet() | {"finish_timeout_raises": True}
        for name, seconds in self.timeouts.items():
            if f"WANDB_{name.upper()}" not in os.environ:
                settings[name] = seconds
        self._wandb_init["mode"] = mode
        self._wandb_init["settings"] = wandb.Settings(**settings)
        self._experiment = WandbLogger.experiment.fget(self)  # type: ignore[attr-defined]
        self._online = mode == "online"

    def _choose_mode(self) -> tuple[str, str]:
        """Return the mode of the run, and the reason if it is offline."""
        import wandb

        settings = wandb.setup().settings
        requested = self._requested_mode()
        if requested in ("offline", "disabled"):
            return requested, "as requested"
        if not _has_key(settings):
            if requested == "online":
                raise InputError(
                    "trainer.logger.mode=online: API key not found; "
                    "run wandb login or set WANDB_API_KEY"
                )
            return "offline", "API key not found (wandb login)"
        if requested != "online" and (reason := _unreachable(settings.base_url)):
            return "offline", reason
        return "online", ""

    def _requested_mode(self) -> str:
        """Return the mode of the settings or of ``WANDB_MODE``; empty without one."""
        mode = os.environ.get("WANDB_MODE", "")
        return self.mode or {"dryrun": "offline", "run": "online"}.get(mode, mode)


def _has_key(settings: Any) -> bool:
    """Return whether credentials exist, without asking the user for them."""
    from wandb.sdk.lib.wbauth import read_netrc_auth

    given = (
        settings.api_key
        or os.environ.get("WANDB_API_KEY")
        or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    )
    return bool(given or read_netrc_auth(host=settings.base_url))


def _unreachable(url: str) -> str | None:
    """Return why a server cannot be reached; None if it answers, even with an error."""
    import requests

    answer: list[str | None] = []

    def ask() -> None:
        try:
            # the identity as `auth` keeps credentials of a .netrc file from being sent
            response = requests.get(
                url, timeout=PROBE_SECONDS, stream=True, auth=lambda request: request
            )
            is_down = response.status_code in (502, 503, 504)
            answer.append(f"{url} answers {response.status_code}" if is_down else None)
        except requests.exceptions.SSLError:
            answer.append(None)  # wandb may know the certificate
        except requests.exceptions.Timeout:
            pass
        except (requests.exceptions.RequestException, OSError):
            answer.append(f"{url} cannot be reached")

    # the timeout of requests does not cover a silent name server, nor a server that sends
    # byte by byte
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS + 1)
    return answer[0] if answer else f"{url} does not answer"


def _quiet() -> dict[str, Any]:
    """Return settings that silence wandb: a successful run needs one line, which is ours."""
    return {} if "WANDB_SILENT" in os.environ else {"silent": True}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:MAX_ERROR] or type(error).__name__


def _print(line: str) -> None:
    print(f"W&B: {line}", file=sys.stderr, flush=True)
