"""How long do ranks wait for the slowest one? A simulation on where inversion stopped in a real run.

    python benchmarks/balance.py RUN_DIR

Images of the run are drawn with replacement to the size of the paper's experiment: 50,000 in-distribution and 35,000 others, the
sets one after the other. An image costs the network rows of its inversion and its two reconstructions. ``lost`` is how much longer
the run takes than if all ranks ended together, ``wait`` how long the first rank that is done waits for the last one; both as shares
of the run.
"""

import heapq
import sys

import numpy as np

from diffguard_pl.runs.record import read_record
from diffguard_pl.runs.store import read_scores

SIZES, RANKS, BATCH = (50_000, 35_000), 8, 32


def costs(run: str, wide: bool, chance: np.random.Generator) -> list[np.ndarray]:
    """GuidanceInputs that each image of each set takes; ``wide``: where inversion stops is drawn evenly from the whole schedule, images of a
    folder (50 in a row) alike."""
    frame, header = read_scores(run)
    settings = read_record(run)["config"]["model"]
    is_ind = frame["dataset"] == header.datasets[0]
    drawn = [
        chance.choice(frame.loc[of, "stop_index"].dropna().to_numpy(), n)
        for of, n in zip((is_ind, ~is_ind), SIZES, strict=True)
    ]
    if wide:
        drawn = [np.repeat(chance.integers(1, settings["steps"], n // 50), 50) for n in SIZES]
    return [
        (stop + 1) + 2 * np.minimum(stop + settings["forback_skip_diff"] + 1, settings["steps"])
        for stop in drawn
    ]


def batches(share: np.ndarray) -> np.ndarray:
    """What each batch of a share costs."""
    return np.add.reduceat(share, np.arange(0, len(share), BATCH))


def shared_out(sets: list[np.ndarray], speed: np.ndarray, interleaved: bool) -> np.ndarray:
    """When each rank is done, if it gets its images beforehand."""
    shares = [
        [
            of_set[rank::RANKS] if interleaved else np.array_split(of_set, RANKS)[rank]
            for of_set in sets
        ]
        for rank in range(RANKS)
    ]
    return np.array([sum(batches(of_set).sum() for of_set in share) for share in shares]) / speed


def claimed(sets: list[np.ndarray], speed: np.ndarray, ahead: int) -> np.ndarray:
    """When each rank is done, if ranks take the next batch when they need one, or ``ahead`` batches earlier."""
    queue = np.concatenate([batches(of_set) for of_set in sets]).tolist()
    waiting: list[list[float]] = [[] for _ in range(RANKS)]
    for _ in range(ahead):
        for rank in range(RANKS):
            waiting[rank].append(queue.pop(0))
    done = np.zeros(RANKS)
    ready = [(0.0, rank) for rank in range(RANKS)]
    while ready:
        time, rank = heapq.heappop(ready)
        if queue:
            waiting[rank].append(queue.pop(0))
        if waiting[rank]:
            heapq.heappush(ready, (time + waiting[rank].pop(0) / speed[rank], rank))
        else:
            done[rank] = time
    return done


def main(run: str) -> None:
    machines = {"all alike": np.ones(RANKS), "one 15 % slower": np.r_[np.ones(RANKS - 1), 0.85]}
    print("| stops | ranks | how | lost | wait |\n|---|---|---|---:|---:|")
    for stops in ("of the run", "wide"):
        sets = costs(run, stops == "wide", np.random.default_rng(0))
        for machine, speed in machines.items():
            ideal = sum(of_set.sum() for of_set in sets) / speed.sum()
            for how, done in {
                "blocks of each set": shared_out(sets, speed, interleaved=False),
                "interleaved": shared_out(sets, speed, interleaved=True),
                "claimed when needed": claimed(sets, speed, 0),
                "claimed 8 batches ahead": claimed(sets, speed, 8),
            }.items():
                lost, wait = done.max() / ideal - 1, (done.max() - done.min()) / done.max()
                print(f"| {stops} | {machine} | {how} | {lost:.2%} | {wait:.2%} |")


if __name__ == "__main__":
    main(sys.argv[1])
