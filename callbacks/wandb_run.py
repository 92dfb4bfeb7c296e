"""Weights & Biases as the logger of a run."""

import importlib.util
import json
import os
import secrets
import shlex
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from diffguard_pl.errors import InputError, choose

MODES = ["online", "offline", "disabled"]
PROBE_SECONDS = 5.0
"""For the server to answer before a run begins."""


class WandbRun(WandbLogger):
    """A run on W&B; on disk alone where there is no key or no server, to be uploaded later. It never asks and never hangs.

    What is not given is taken from ``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_NAME``, ``WANDB_RUN_GROUP``, ``WANDB_TAGS`` and
    ``WANDB_MODE``.

    Args:
        project: where runs are listed; none: ``diffguard``.
        entity: user or team; none: the user's default.
        name: of the run; none: that of its folder, config and time.
        group: of runs that belong together.
        tags: of the run.
        mode: online, offline or disabled; none: online where there is a key and a server that answers, else offline.
        init_timeout: seconds to wait for the server when a run begins.
        finish_timeout: seconds to wait for uploads when it ends. What is left then stays on disk.
        save_dir: of a run that is not of the command, which has it in its own folder.
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
        if importlib.util.find_spec("wandb") is None:
            raise InputError(
                "trainer.logger: WandbRun needs wandb: pip install diffguard-pl[wandb]"
            )
        if mode is not None:
            choose("mode of trainer.logger", mode, MODES)
        if min(init_timeout, finish_timeout) <= 0:
            raise InputError(
                f"trainer.logger: {init_timeout=}, {finish_timeout=}: expected seconds"
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
        self.mode, self.timeouts = (
            mode,
            {"init_timeout": init_timeout, "finish_timeout": finish_timeout},
        )
        self._online = False
        self._gone = False

    def attach(
        self, folder: str | Path, config: Mapping[str, Any] | None = None, run_id: str | None = None
    ) -> None:
        """Make this the record of the run in a folder; before the experiment is first used.

        Args:
            folder: of the run; W&B's files go to ``wandb`` in it.
            config: the settings of the run.
            run_id: of the W&B run to go on with; none: a new one.
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
        """Of the W&B run: to be stored, and given to :meth:`attach` when the run is resumed."""
        return str(self._id)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``wandb.Run``; begun where there is none yet."""
        if self._experiment is None:
            import wandb

            try:
                self._begin()
            except (
                wandb.Error,
                ValueError,
            ) as error:  # settings and variables that it does not take
                reason = (
                    str(error)
                    if isinstance(error, InputError)
                    else "trainer.logger: " + " ".join(str(error).split())[:300]
                )
                raise InputError(reason) from error
        return self._experiment

    @rank_zero_only
    def go_on(self) -> None:
        """Go on on disk alone, as the same W&B run, if the server has gone: pictures and artifacts would each wait for it."""
        if (
            self._experiment is not None
            and self._online
            and (reason := _unreachable(self._experiment.settings.base_url))
        ):
            self._finish(0)
            self._init("offline")
            self._say_offline(reason)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """A run outlives W&B's own process."""
        if self._gone:
            return
        try:
            super().log_metrics(dict(metrics), step)
        except Exception as error:  # of many kinds
            self._gone = True
            _say(
                f"not all is logged: {' '.join(str(error).split())[:160] or type(error).__name__}; the run goes on without"
            )

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Upload what is left, for so long as ``finish_timeout`` allows; wandb's files are complete when the process has ended."""
        try:
            super().finalize(status)
            if self._experiment is not None and not self._finish(0 if status == "success" else 1):
                self._say_offline("not all could be uploaded")
        except Exception as error:  # of many kinds
            _say(
                f"could not end its run: {' '.join(str(error).split())[:160] or type(error).__name__}"
            )

    def _finish(self, exit_code: int) -> bool:
        """End the piece of the run that is under way; whether all of it could be uploaded in time."""
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
                _say(str(self.experiment.url))
                return
            except (
                Exception
            ) as error:  # of many kinds: a refused key, no answer in time, settings of the server
                reason = " ".join(str(error).split())[:160] or type(error).__name__
                if self._mode() == "online":
                    raise InputError(f"trainer.logger.mode=online: {reason}") from error
                wandb.teardown()  # or the id of the run is in use
        try:
            self._init("disabled" if mode == "disabled" else "offline")
        except wandb.Error as error:
            raise InputError("trainer.logger: " + " ".join(str(error).split())) from error
        if mode != "disabled":
            self._say_offline(f"offline, {reason}")

    def _say_offline(self, reason: str) -> None:
        # a resumed run is in several pieces, of which some may have begun online
        folder = shlex.quote(str(Path(self._wandb_init["dir"]) / "wandb"))
        _say(f"{reason}; to upload the run later: wandb sync --include-online {folder}")

    def _init(self, mode: str) -> None:
        import wandb

        Path(self._wandb_init["dir"]).mkdir(parents=True, exist_ok=True)  # or wandb writes to /tmp
        ours: dict[str, Any] = {
            name: value
            for name, value in self.timeouts.items()
            if f"WANDB_{name.upper()}" not in os.environ
        }
        self._wandb_init["mode"] = mode
        self._wandb_init["settings"] = wandb.Settings(
            **_quiet(), **ours, finish_timeout_raises=True
        )
        self._experiment = WandbLogger.experiment.fget(self)  # type: ignore[attr-defined]
        self._online = mode == "online"

    def _choose_mode(self) -> tuple[str, str]:
        """How the run is recorded, and why it is if that is offline."""
        import wandb

        settings = wandb.setup().settings
        asked = self._mode()
        if asked in ("offline", "disabled"):
            return asked, "as asked for"
        if not _has_key(settings):
            if asked == "online":
                raise InputError(
                    "trainer.logger.mode=online: there is no API key; wandb login, or WANDB_API_KEY"
                )
            return "offline", "there is no API key (wandb login)"
        if asked != "online" and (reason := _unreachable(settings.base_url)):
            return "offline", reason
        return "online", ""

    def _mode(self) -> str:
        mode = os.environ.get("WANDB_MODE", "")
        return self.mode or {"dryrun": "offline", "run": "online"}.get(mode, mode)


def _has_key(settings: Any) -> bool:
    """Whether there are credentials, without asking for them."""
    from wandb.sdk.lib.wbauth import read_netrc_auth

    given = (
        settings.api_key
        or os.environ.get("WANDB_API_KEY")
        or os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    )
    return bool(given or read_netrc_auth(host=settings.base_url))


def _unreachable(url: str) -> str | None:
    """Why a server cannot be had; None if it answers, be it with an error."""
    import requests

    answer: list[str | None] = []

    def ask() -> None:
        try:
            # no netrc: the question is only whether anybody is there
            status = requests.get(
                url, timeout=PROBE_SECONDS, stream=True, auth=lambda request: request
            ).status_code
            answer.append(f"{url} answers {status}" if status in (502, 503, 504) else None)
        except requests.exceptions.SSLError:
            answer.append(None)  # wandb may know the certificate
        except requests.exceptions.Timeout:
            pass
        except (requests.exceptions.RequestException, OSError):
            answer.append(f"{url} cannot be reached")

    # a name server that is silent, and a server that sends byte by byte, know no timeout
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS + 1)
    return answer[0] if answer else f"{url} does not answer"


def _quiet() -> dict[str, Any]:
    """What there is to say of a run that goes well is one line, and that is ours."""
    return {} if "WANDB_SILENT" in os.environ else {"silent": True}


def _say(line: str) -> None:
    print(f"W&B: {line}", file=sys.stderr, flush=True)
