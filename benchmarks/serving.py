"""Load test of ``diffguard-pl serve`` on the loopback interface, beside ``Detector.predict``.

    python benchmarks/serving.py                   # the embedded digits, about three minutes
    python benchmarks/serving.py --seconds 60 --clients 1 8 32 64

Each client sends its next image when it has the answer to its last. Each line lasts ``--seconds``.
``predict`` is measured before and after, as machines are noisy; CPU time depends less on what
else runs: that of the detector's process, a decision. At the end the server gets SIGTERM
while the largest number of clients send; every request that it accepted must have been answered,
and be in the log.
"""

import argparse
import http.client
import itertools
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms.functional import to_pil_image

from diffguard_pl import Detector
from diffguard_pl.datamodules.digits import digits

BATCH = 32
"""Number of images of a full batch: the server's ``--max-batch``, unless it is given."""


class Clients:
    """Clients that send images until a deadline, each as soon as its last one is answered.

    Args:
        port: Port of the server.
        contents: Files to send in turn.

    Attributes:
        seconds: Seconds of each answered request.
        lost: What became of accepted requests without an answer.
        refused: Number of connections that were refused.
    """

    def __init__(self, port: int, contents: list[bytes]):
        self.port, self.contents = port, itertools.cycle(contents)
        self.lock = threading.Lock()
        self.seconds: list[float] = []
        self.lost: list[str] = []
        self.refused = 0

    def start(self, count: int, deadline: float) -> list[threading.Thread]:
        """Start clients; return their threads."""
        threads = [threading.Thread(target=self._send, args=[deadline]) for _ in range(count)]
        for thread in threads:
            thread.start()
        return threads

    def _send(self, deadline: float) -> None:
        connection: http.client.HTTPConnection | None = None
        while time.monotonic() < deadline:
            with self.lock:
                content = next(self.contents)
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
                try:
                    connection.connect()
                except OSError:
                    self.refused += 1
                    return
            began = time.monotonic()
            try:
                connection.request("POST", "/v1/decisions", content, {"Content-Type": "image/png"})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(type(error).__name__)
                return
            with self.lock:
                if answer.status == 200:
                    self.seconds.append(time.monotonic() - began)
                else:
                    self.lost.append(str(answer.status))
            if answer.will_close:
                connection = None


def metric(port: int, name: str) -> float:
    """Return the value of a metric of the server."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("GET", "/metrics")
    for line in connection.getresponse().read().decode().splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise SystemExit(f"error: the server has no metric {name}")


def cpu_seconds(process: int) -> float:
    """Return the user and system CPU seconds of a process (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def show(
    what: str, seconds: list[float], images: int, wall: float, batch: float, cpu: float
) -> None:
    """Print a line of the table."""
    p50, p99 = (1000 * np.percentile(seconds, q) for q in (50, 99))
    print(
        f"| {what} | {len(seconds)} | {images / wall:.2f} | {p50:.0f} | {p99:.0f} | {batch:.1f} | "
        f"{1000 * cpu / images:.0f} |",
        flush=True,
    )


def measure_predict(detector: Detector, paths: list[str], size: int, seconds: float) -> None:
    """Print the line of ``predict`` in a loop over files, so many at a time."""
    turns = itertools.cycle(paths)
    taken: list[float] = []
    began, cpu = time.monotonic(), time.process_time()
    while time.monotonic() < began + seconds:
        start = time.monotonic()
        detector.predict(list(itertools.islice(turns, size)))
        taken.append(time.monotonic() - start)
    what = "predict, one image at a time" if size == 1 else f"predict, batches of {size}"
    cpu = time.process_time() - cpu
    show(what, taken, size * len(taken), time.monotonic() - began, size, cpu)


def measure_server(
    process: int, port: int, contents: list[bytes], count: int, seconds: float
) -> None:
    """Print the line of a number of clients."""
    names = [f"diffguard_batch_images_{part}" for part in ("sum", "count")]
    before = [metric(port, name) for name in names]
    clients = Clients(port, contents)
    began, cpu = time.monotonic(), cpu_seconds(process)
    for thread in clients.start(count, began + seconds):
        thread.join()
    wall = time.monotonic() - began
    images, batches = (metric(port, name) - old for name, old in zip(names, before, strict=True))
    found = clients.seconds
    cpu = cpu_seconds(process) - cpu
    show(f"serve, {count} clients", found, len(found), wall, images / batches, cpu)
    if clients.lost:
        raise SystemExit(f"error: requests without a decision: {clients.lost}")


def stop_under_load(
    server: "subprocess.Popen[str]", port: int, contents: list[bytes], count: int, log: Path
) -> None:
    """End the server while clients send, and print what became of their requests."""
    before = len(log.read_text().splitlines())
    clients = Clients(port, contents)
    threads = clients.start(count, time.monotonic() + 600)
    while metric(port, "diffguard_images_in_progress") < count:
        time.sleep(0.01)
    server.send_signal(signal.SIGTERM)
    began = time.monotonic()
    for thread in threads:
        thread.join()
    status = server.wait(timeout=600)
    logged = len(log.read_text().splitlines()) - before
    print(
        f"\nSIGTERM with {count} requests in progress: {len(clients.seconds)} answered, "
        f"{logged} in the log, {len(clients.lost)} lost; exit status {status} after "
        f"{time.monotonic() - began:.1f} s"
    )


def main() -> None:
    """Print a table of requests per second and latencies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detector", default="digits_ldm", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=20, help="default: %(default)s")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--max-batch", type=int, default=BATCH, help="default: %(default)s")
    given = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads, {given.seconds:g} s a line\n"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [str(folder / f"{i}.png") for i in range(64)]
        for path, image in zip(paths, digits("test").images, strict=False):
            to_pil_image(image).save(path)
        contents = [Path(path).read_bytes() for path in paths]

        detector = Detector.load(given.detector)
        detector.predict(paths[:1])
        print("| | answers | images/s | p50, ms | p99, ms | mean batch | CPU, ms an image |")
        print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
        sizes = (1, given.max_batch)
        for size in sizes:
            measure_predict(detector, paths, size, given.seconds)

        log = folder / "log.jsonl"
        command: list[Any] = ["-m", "diffguard_pl", "serve", "--detector", given.detector]
        command += ["--port", 0, "--log", log, "--max-batch", given.max_batch]
        with subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                assert server.stdout is not None
                port = int(server.stdout.readline().split()[0].rpartition(":")[2])
                Clients(port, contents).start(1, time.monotonic() + 0.1)[0].join()  # is slower
                for count in given.clients:
                    measure_server(server.pid, port, contents, count, given.seconds)
                for size in sizes:
                    measure_predict(detector, paths, size, given.seconds)
                stop_under_load(server, port, contents, max(given.clients), log)
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
