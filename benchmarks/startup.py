"""CPU time of starting commands, in units of one ``import torch`` measured in the same run.

    python benchmarks/startup.py

Each line is the median over fresh processes of user plus system CPU seconds, after one that is not
counted: Python keeps the compiled modules of that one in a folder of this benchmark. One thread
computes, as threads that wait for each other take CPU time. The unit makes the numbers comparable
between machines.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

SCORE_ONE_IMAGE = """
from PIL import Image
from diffguard_pl import Detector
Detector.load("digits_ldm", device="cpu").predict([Image.new("RGB", (16, 16))])
"""
QUICK_RUN = "test --data.limit 16 --model.steps 5 --page.enabled false --trainer.accelerator cpu"
COMMAND = ["-m", "diffguard_pl"]
HELP = {
    "test": 2.5,
    "calibrate": 2.5,
    "analyze": 0.3,
    "score": 0.3,
    "serve": 0.3,
    "demo": 0.3,
    "report": 0.3,
    "submit": 0.3,
    "merge": 0.3,
    "data": 0.3,
    "checkpoints": 0.3,
}
"""Goal of ``COMMAND --help``."""


def cpu_seconds(args: list[str], folder: Path) -> float:
    """Run Python with these arguments in a new process; return its user and system CPU seconds."""
    process = os.fork()
    if process == 0:
        os.chdir(folder)
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        os.execv(sys.executable, [sys.executable, *args])
    _, status, usage = os.wait4(process, 0)
    if status != 0:
        raise SystemExit(f"error: python {' '.join(args)} ended with status {status}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print a table of CPU times and goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="processes a line (default: 5)")
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

        def median(args: list[str]) -> float:
            cpu_seconds(args, folder)
            return statistics.median(cpu_seconds(args, folder) for _ in range(repeat))

        unit = median(["-c", "import torch"])
        print(f"import torch: {unit:.2f} CPU-seconds\n\n| what | ratio | goal |\n|---|---:|---:|")
        cases = {
            f"{name} --help": ([*COMMAND, name, "--help"], goal) for name, goal in HELP.items()
        }
        cases["checkpoints list"] = ([*COMMAND, "checkpoints", "list"], 0.5)
        cpu_seconds([*COMMAND, *QUICK_RUN.split(), "--trainer.default_root_dir", "run"], folder)
        cases["report RUN"] = ([*COMMAND, "report", "run"], 1.0)
        cases["Detector.load and one image"] = (["-c", SCORE_ONE_IMAGE], 2.2)
        for what, (args, goal) in cases.items():
            print(f"| {what} | {median(args) / unit:.2f} | {goal} |", flush=True)


if __name__ == "__main__":
    main()
