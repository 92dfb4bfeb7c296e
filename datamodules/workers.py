"""Worker processes of data loaders."""

import signal


def leave_signals_to_parent(worker: int) -> None:
    """Ignore what was sent to the whole process group: the parent ends its workers.

    Ctrl-C in a terminal and SLURM's signals reach all processes of a run. A worker that ends
    before its parent has stopped would be reported as lost. To be passed to a
    :class:`~torch.utils.data.DataLoader` as ``worker_init_fn``.

    Args:
        worker: Number of the worker, not used.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The parent ends workers with SIGTERM as well, so that only the first one is ignored.
    signal.signal(signal.SIGTERM, lambda signum, frame: signal.signal(signum, signal.SIG_DFL))
