"""Settings of Lightning's trainer: those that a test cannot follow are refused in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy, ParallelStrategy, SingleDeviceStrategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ..errors import InputError


def check_seed(seed: bool | int | None) -> None:
    """Raise an `InputError` for a seed that NumPy does not take."""
    if seed is not None and not 0 <= seed < 2**32:
        raise InputError(f"seed_everything={seed}: must be from 0 to {2**32 - 1}")


def prepare_trainer_settings(settings: Any) -> None:
    """Check settings, and replace ``fast_dev_run`` by what it means for a test.

    Raises:
        InputError: No image would be scored, or the results would not be written.
    """
    if settings.limit_test_batches == 0:
        raise InputError(
            "trainer.limit_test_batches=0: no image would be scored; set it to at least 1, or "
            "leave it out"
        )
    if settings.barebones:
        raise InputError(
            "trainer.barebones: turns off the callbacks that write the results; leave it out"
        )
    if settings.fast_dev_run < 0:
        raise InputError(f"trainer.fast_dev_run={settings.fast_dev_run}: must be at least 1 batch")
    if settings.fast_dev_run:
        # Lightning would leave out the record of the run as well.
        settings.limit_test_batches = int(settings.fast_dev_run)
        settings.fast_dev_run, settings.logger = False, False


@contextmanager
def trainer_errors() -> Iterator[None]:
    """Turn the errors of Lightning's trainer about its settings into `InputError`."""
    try:
        yield
    except InputError:
        raise
    except (ImportError, MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"trainer: {' '.join(str(error).split())}") from error


def check_trainer(trainer: Trainer) -> None:
    """Raise an error if a test cannot run as its processes are started.

    Raises:
        InputError: The model would be split, results would be lost in a child process, or the
            processes would wait for others that a SLURM job does not have.
        ValueError: Lightning finds that a SLURM job has other tasks or nodes.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
        raise InputError(
            f"trainer.strategy: {type(strategy).__name__} is not supported; set it to auto or ddp"
        )
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise InputError(
            "trainer.strategy: the results would be lost in processes that are forked or spawned; "
            "set it to auto or ddp"
        )
    environment = strategy.cluster_environment if isinstance(strategy, ParallelStrategy) else None
    if isinstance(environment, SLURMEnvironment):
        environment.validate_settings(trainer.num_devices, trainer.num_nodes)
        wanted, tasks = trainer.num_devices * trainer.num_nodes, environment.world_size()
        if wanted != tasks:
            raise InputError(
                f"trainer.devices={trainer.num_devices}, num_nodes={trainer.num_nodes}: need "
                f"{wanted} tasks, and this SLURM job has {tasks}; give it "
                f"--ntasks-per-node={trainer.num_devices} and start the test with srun"
            )
