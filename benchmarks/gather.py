"""What does it take to gather the scores of a million images from 8 ranks? ``python benchmarks/gather.py [IMAGES] [RANKS]``

Each rank holds its share of 12 scores an image, as after a run, in batches of 32. Measured are the exact metric of this package
(``dist_reduce_fx="cat"``: every rank gets all scores, the first one makes the table) and torchmetrics' BinaryAUROC with 200 bins
(a state of fixed size), of one score. Ranks are gloo processes on this machine, one thread each.
"""

import resource
import sys
import tempfile
import time

import torch
import torch.multiprocessing as mp
from torchmetrics.classification import BinaryAUROC

from diffguard_pl.metrics.detection import auroc
from diffguard_pl.metrics.torchmetric import OODMetrics

SCORES, BATCH = 12, 32
SETS = ["ind", "a", "b", "c", "d"]


def rank_main(rank: int, ranks: int, images: int, meeting: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks
    )
    generator = torch.Generator().manual_seed(rank)
    share = images // ranks + (rank < images % ranks)
    values = torch.randn(share, SCORES, generator=generator, dtype=torch.float64)
    indices = torch.arange(share) * ranks + rank
    members = (indices * len(SETS)) // images
    values -= members[:, None].double()
    exact = OODMetrics([f"s{k}" for k in range(SCORES)], SETS, first_rank=True)
    binned = BinaryAUROC(thresholds=200, validate_args=False)
    base = peak()
    for at in range(0, share, BATCH):
        part = slice(at, at + BATCH)
        exact.update(values[part], members[part], indices[part])
        binned.update(values[part, 0].sigmoid().float(), (members[part] == 0).long())
    held = peak()
    torch.distributed.barrier()
    began = time.perf_counter()
    exact.sync()
    gathered, at_gather = time.perf_counter() - began, peak()
    exact.unsync()
    torch.distributed.barrier()
    began = time.perf_counter()
    rows = exact.compute()
    computed, at_compute = time.perf_counter() - began - gathered, peak()
    torch.distributed.barrier()
    began = time.perf_counter()
    of_bins = binned.compute().item()
    binned_seconds = time.perf_counter() - began
    if rank == 0:
        table = exact.table
        assert table is not None
        assert len(table.values) == images
        all_ood = torch.from_numpy(table.values[table.members > 0, 0])
        true = auroc(torch.from_numpy(table.of(0)[:, 0]), all_ood)
        print(f"{images:,} images, {ranks} ranks, {SCORES} scores, {len(rows)} rows of the table")
        print(
            f"held before: {held - base:.0f} MB a rank; gather: {gathered:.2f} s, peak +{at_gather - held:.0f} MB a rank"
        )
        print(
            f"table, on the first rank: {computed:.2f} s, peak +{at_compute - held:.0f} MB a rank"
        )
        print(
            f"200 bins, one score: {binned_seconds:.3f} s; AUROC {of_bins:.5f}, exact {true:.5f}, off by {abs(of_bins - true):.1e}"
        )
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def peak() -> float:
    """Resident memory of this process so far, at most, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    images, ranks = (
        int(given) for given in (*sys.argv[1:3], *("1000000", "8")[len(sys.argv) - 1 :])
    )
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_main, (ranks, images, f"{folder}/meeting"), nprocs=ranks)
