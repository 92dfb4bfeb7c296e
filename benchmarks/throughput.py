"""How fast? Images/s, rows/s and TFLOP/s of the whole detector, beside what the machine's matrix product does in the same process.

    python benchmarks/throughput.py                        # digits, both pipelines, on the CPU
    python benchmarks/throughput.py --model small          # the same with networks of a laptop's size, to see that it runs
    python benchmarks/throughput.py --model full           # GDM-256 and LDM-cin256 at full size, random weights: for a GPU

Every line is a run of the same images through the same weights. ``naive`` is what the original does: image by image under early
stop, the network once more a step, with a graph, for the guidance of GDM; batches of 48 for LDM. ``plain`` are our plain loops in
batches of ``--batch``, ``engine`` is what a run does. Lines are timed in turn, ``--rounds`` times over, and ``speed`` is the
median of the ratios to ``naive`` within a round: machines are noisy. ``--out FILE`` keeps all numbers as JSON.
"""

import argparse
import json
import platform
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import diffguard_pl
from diffguard_pl import DiffGuard
from diffguard_pl.config import find_config
from diffguard_pl.datamodules.digits import digits, held_out, letters, photos
from diffguard_pl.diffusion.classifier_guidance import ClassifierGuidance
from diffguard_pl.diffusion.ddim import Level
from diffguard_pl.diffusion.guidance import GuidanceInputs, GuidingClassifier, Network
from diffguard_pl.engine import reference

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
RANDOM = {"backbone__init_args__checkpoint": "random", "classifier__weights": "random"}
FULL = {
    "gdm": RANDOM
    | {
        "early_stop": {"psnr": 48.5},
        "discrepancies": ["ssim"],
    },  # DISTS and LPIPS have weights to download
    "ldm": RANDOM | {"discrepancies": ["ssim"]},
}
SMALL = {
    family: yaml.safe_load(find_config(f"small/{family}").read_text())["model"]
    | {"guidance": {"init_args": guidance}}
    for family, guidance in (("gdm", {"cutouts": 1}), ("ldm", {}))
}
"""To see that a run at full size would run."""


def flat(settings: dict[str, Any], key: str = "") -> dict[str, Any]:
    """As :func:`diffguard_pl.load` takes them; an architecture goes in whole."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"{key}__{name}" if key else name
        whole = not isinstance(value, dict) or name == "architecture"
        found |= {path: value} if whole else flat(value, path)
    return found


class Redundant(ClassifierGuidance):
    """As the original does it: x0hat comes from a second call of the network, whose graph is kept."""

    def predict_eps(
        self,
        network: Network,
        x: Tensor,
        t: Tensor,
        level: Level,
        inputs: GuidanceInputs,
        classifier: GuidingClassifier,
    ) -> Tensor:
        if len(inputs.labels):
            g = len(inputs.labels)
            with torch.inference_mode(False), torch.enable_grad():
                again = network(
                    x[:g].clone().requires_grad_(), t[:g].clone(), inputs.network_labels[:g].clone()
                )
                assert again.requires_grad
        return super().predict_eps(network, x, t, level, inputs, classifier)


def naive(detector: DiffGuard, images: Tensor) -> None:
    """The original's loop."""
    ours = detector.guidance
    if isinstance(ours, ClassifierGuidance):
        detector.guidance = Redundant(
            ours.scale, ours.cutouts, ours.cutout_size, ours.x0hat, ours.seed
        )
    try:
        for batch in images.split(1 if detector.sampling.early_stop else 48):
            reference.detect(detector, batch)
    finally:
        detector.guidance = ours


def plain(detector: DiffGuard, images: Tensor, batch: int) -> None:
    for part in images.split(batch):
        reference.detect(detector, part)


def engine(detector: DiffGuard, images: Tensor, batch: int) -> float:
    """Returns how full the batches were."""
    stream = detector.stream()
    for part in images.split(batch):
        stream.push(part)
    stream.drain()
    return stream.engine.utilisation


# ------------------------------------------------------------------------------------------------------------- measuring


class Line:
    """A way to run the detector."""

    def __init__(
        self, name: str, detector: DiffGuard, run: Callable[[], float | None], precision: str
    ):
        self.name, self.detector, self.run, self.precision = name, detector, run, precision
        self.seconds: list[float] = []
        self.rows, self.memory, self.warm_up = 0, 0, 0.0
        self.utilisation: float | None = None

    def time(self, device: torch.device) -> None:
        """Once."""
        before = self.detector.nfe
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        with (
            torch.inference_mode(),
            torch.autocast(
                device.type, AUTOCAST.get(self.precision), enabled=self.precision in AUTOCAST
            ),
        ):
            self.utilisation = self.run()
        if device.type == "cuda":
            torch.cuda.synchronize()
            self.memory = torch.cuda.max_memory_allocated()
        else:
            self.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.seconds.append(time.perf_counter() - began)
        self.rows = self.detector.nfe - before


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, the best of several sizes."""
    best = 0.0
    for n in (4096, 8192) if device.type == "cuda" else (1024, 2048):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        for _ in range(3):
            a @ b
        repeats = 20 if device.type == "cuda" else 5
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, repeats * 2 * n**3 / (time.perf_counter() - began))
    return best


@torch.no_grad()
def flops_of_a_row(detector: DiffGuard, images: Tensor) -> int:
    """Of the diffusion model."""
    x, count = detector.backbone.encode(images[:1] * 2 - 1), FlopCounterMode(display=False)
    t = labels = torch.zeros(1, dtype=torch.long, device=x.device)
    with count:
        detector.backbone.eps(x, t, labels)
    return count.get_total_flops()


def lines(
    args: argparse.Namespace, family: str, images: Tensor, device: torch.device
) -> Iterator[Line]:
    own = {"digits": {}, "small": FULL[family] | flat(SMALL[family]), "full": FULL[family]}[
        args.model
    ]

    def detector(**settings: Any) -> DiffGuard:
        one = diffguard_pl.load(
            f"digits_{family}" if args.model == "digits" else family, **own | settings
        ).to(device)
        if args.channels_last:
            for network in (one.backbone.denoiser, one.classifier.model):
                torch.nn.Module.to(network, memory_format=torch.channels_last)
        return one

    if args.model == "digits":
        fast = diffguard_pl.load(f"fast/digits_{family}").to(device)
        yield Line("naive", first := detector(), lambda: naive(first, images[: args.naive]), "32")
        yield Line(
            "engine, 64 slots, preset of fewer rows",
            fast,
            lambda: engine(fast, images, args.batch),
            "32",
        )
    for precision in args.precision:
        note = "" if precision == "32" else f", {precision}"
        one = detector()
        if precision in TRUE:
            one.networks_to(TRUE[precision])
        if precision == args.precision[0]:
            if args.model != "digits":
                yield Line(
                    f"naive{note}", one, lambda d=one: naive(d, images[: args.naive]), precision
                )
            yield Line(
                f"plain, batch {args.batch}{note}",
                one,
                lambda d=one: plain(d, images, args.batch),
                precision,
            )
        for slots in args.slots:
            for compiled in (False, True) if args.compile else (False,):
                one = detector(slots=slots, compile=compiled)
                if precision in TRUE:
                    one.networks_to(TRUE[precision])
                name = f"engine, {slots} slots{', compiled' if compiled else ''}{note}"
                yield Line(name, one, lambda d=one: engine(d, images, args.batch), precision)


def measure(args: argparse.Namespace, family: str, device: torch.device) -> dict[str, Any]:
    """All lines of one pipeline."""
    if args.model == "digits":
        sets = (digits("test"), held_out(), photos(), letters())
        images = torch.cat([data.images[:: max(1, len(data) * 4 // args.images)] for data in sets])[
            : args.images
        ].to(device)
    else:
        size = 64 if args.model == "small" else 224 if family == "gdm" else 256
        smooth = torch.rand(args.images, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        images = (
            torch.nn.functional.interpolate(smooth, (size, size), mode="bicubic")
            .clamp(0, 1)
            .to(device)
        )
    found = list(lines(args, family, images, device))
    for line in found:
        with torch.inference_mode():
            began = time.perf_counter()
            line.time(device)  # warm-up: compilation, algorithms, memory
            line.warm_up = time.perf_counter() - began
            line.seconds.clear()
    for _ in range(args.rounds):
        for line in found:
            line.time(device)
    row = flops_of_a_row(found[0].diffguard, images)
    dtypes = {
        line.precision: (AUTOCAST | TRUE).get(line.precision, torch.float32) for line in found
    }
    rates = {dtype: matmul_rate(device, dtype) for dtype in set(dtypes.values())}
    base = [min(args.naive, len(images)) / seconds for seconds in found[0].seconds]
    result = {"family": family, "flops_of_a_row": row, "images": len(images), "lines": []}
    for line in found:
        rate = rates[dtypes[line.precision]]
        count = min(args.naive, len(images)) if line.name.startswith("naive") else len(images)
        seconds = median(line.seconds)
        result["lines"].append(
            {
                "name": line.name,
                "images_per_second": count / seconds,
                "speed": median(count / s / b for s, b in zip(line.seconds, base, strict=True)),
                "nfe_per_image": line.rows / count,
                "nfe_per_second": line.rows / seconds,
                "tflops": line.rows / seconds * row / 1e12,
                "share_of_matmul": line.rows / seconds * row / rate,
                "matmul_tflops": rate / 1e12,
                "utilisation": line.utilisation,
                "peak_memory_bytes": line.memory,
                "warm_up_seconds": line.warm_up - seconds,
                "seconds": line.seconds,
            }
        )
    return result


def show(result: dict[str, Any]) -> None:
    """A result as a table."""
    title = f"{result['family']}: {result['images']} images, {result['flops_of_a_row'] / 1e9:.3g} GFLOP a row"
    table = Table(title=title)
    for name in (
        "",
        "images/s",
        "speed",
        "rows/image",
        "rows/s",
        "TFLOP/s",
        "of matmul",
        "full",
        "peak GB",
        "warm-up s",
    ):
        table.add_column(name, justify="right" if name else "left")
    for line in result["lines"]:
        table.add_row(
            line["name"],
            f"{line['images_per_second']:.3g}",
            f"{line['speed']:.2f}x",
            f"{line['nfe_per_image']:.1f}",
            f"{line['nfe_per_second']:.0f}",
            f"{line['tflops']:.3g}",
            f"{line['share_of_matmul']:.0%}",
            "" if line["utilisation"] is None else f"{line['utilisation']:.1%}",
            f"{line['peak_memory_bytes'] / 1e9:.1f}",
            f"{line['warm_up_seconds']:.0f}",
        )
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=["digits", "small", "full"], default="digits")
    parser.add_argument("--family", nargs="+", choices=["gdm", "ldm"], default=["gdm", "ldm"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument(
        "--naive", type=int, default=48, help="images of the naive loop, which is slow"
    )
    parser.add_argument("--batch", type=int, default=128, help="images that come together")
    parser.add_argument("--slots", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--precision", nargs="+", choices=["32", *AUTOCAST, *TRUE], default=["32"])
    parser.add_argument("--compile", action="store_true", help="each engine line compiled, too")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument(
        "--channels-last",
        action="store_true",
        help="weights of diffusion model and classifier in NHWC",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="JSON file")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    device = torch.device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    machine = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.processor() or platform.machine()}"
    )
    about = {
        "device": machine,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "arguments": vars(args),
    }
    print(json.dumps(about))
    results = []
    for family in args.family:
        results.append(measure(args, family, device))
        show(results[-1])
        if args.out:
            with open(args.out, "w") as file:
                json.dump(about | {"results": results}, file, indent=1)


if __name__ == "__main__":
    main()
