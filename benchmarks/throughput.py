"""Throughput of DiffGuard, next to the machine's matrix-product rate in the same process.

    python benchmarks/throughput.py                   # digits, both pipelines, on the CPU
    python benchmarks/throughput.py --model small     # smaller networks: a dry run of `full`
    python benchmarks/throughput.py --model full      # GDM-256 and LDM-cin256, random weights; GPU

Every line runs the same images through the same weights:

- ``naive`` is the original's loop: image by image under early stop, for GDM a second network call
  with a graph at each guided step; batches of 48 for LDM;
- ``plain`` is :mod:`diffguard_pl.engine.reference` in batches of ``--batch``;
- ``engine`` is what a run does.

Lines are timed in turn, ``--rounds`` times, and ``speed`` is the median ratio to ``naive`` of the
same round, because machines are noisy. Seconds are printed as they are measured; a line that fails
is left out. ``--out FILE`` writes all numbers as JSON.
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
from diffguard_pl.diffusion.guidance import GuidanceInputs, GuidedNoise, GuidingClassifier, Network
from diffguard_pl.engine import reference

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
HALF = {"bf16-true": torch.bfloat16, "16-true": torch.float16}

# DISTS and LPIPS would download weights.
RANDOM = {
    "backbone__init_args__checkpoint": "random",
    "classifier__weights": "random",
    "discrepancies": ["ssim"],
}
FULL = {"gdm": RANDOM | {"early_stop": {"psnr": 48.5}}, "ldm": RANDOM}


def small(family: str) -> dict[str, Any]:
    """Return the settings of a model with smaller networks, as :func:`diffguard_pl.load` takes."""
    settings = yaml.safe_load(find_config(f"small/{family}").read_text())["model"]
    if family == "gdm":
        settings["guidance"] = {"init_args": {"cutouts": 1}}
    return FULL[family] | flat(settings)


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to keys such as ``guidance__init_args``; architectures stay whole."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}__{name}" if prefix else name
        if isinstance(value, dict) and name != "architecture":
            found |= flat(value, key)
        else:
            found[key] = value
    return found


# ------------------------------------------------------------------------------ ways to run it


class SecondCallGuidance(ClassifierGuidance):
    """Classifier guidance as in the original: x0hat comes from a second call that keeps a graph."""

    def predict_eps(
        self,
        network: Network,
        x: Tensor,
        t: Tensor,
        level: Level,
        inputs: GuidanceInputs,
        classifier: GuidingClassifier,
    ) -> GuidedNoise:
        if g := len(inputs.labels):
            with torch.inference_mode(False), torch.enable_grad():
                x_in = x[:g].clone().requires_grad_()
                second = network(x_in, t[:g].clone(), inputs.network_labels[:g].clone())
                assert second.requires_grad
        return super().predict_eps(network, x, t, level, inputs, classifier)


def naive(diffguard: DiffGuard, images: Tensor) -> None:
    """Run the original's loop."""
    guidance = diffguard.guidance
    if isinstance(guidance, ClassifierGuidance):
        diffguard.guidance = SecondCallGuidance(
            guidance.scale,
            guidance.cutouts,
            guidance.cutout_size,
            guidance.x0hat,
            guidance.seed,
        )
    try:
        for batch in images.split(1 if diffguard.sampling.early_stop else 48):
            reference.detect(diffguard, batch)
    finally:
        diffguard.guidance = guidance


def plain(diffguard: DiffGuard, images: Tensor, batch: int) -> None:
    """Run the plain loops."""
    for part in images.split(batch):
        reference.detect(diffguard, part)


def engine(diffguard: DiffGuard, images: Tensor, batch: int) -> float:
    """Run the engine and return how full its batches were."""
    stream = diffguard.stream()
    for part in images.split(batch):
        stream.push(part)
    stream.drain()
    return stream.engine.utilisation


# ---------------------------------------------------------------------------------- measuring


class Line:
    """A line of the table: a way to run DiffGuard, and what was measured of it.

    Args:
        name: Name of the line.
        diffguard: DiffGuard.
        run: Runs it on all images; may return the utilisation of its batches.
        precision: Precision of the networks, by Lightning's names.
    """

    def __init__(
        self, name: str, diffguard: DiffGuard, run: Callable[[], float | None], precision: str
    ):
        self.name, self.diffguard, self.run, self.precision = name, diffguard, run, precision
        self.seconds: list[float] = []
        self.nfe, self.memory, self.warm_up = 0, 0, 0.0
        self.utilisation: float | None = None

    def measure(self, device: torch.device) -> None:
        """Run once and keep time, memory and NFE."""
        nfe_before = self.diffguard.nfe
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        dtype = AUTOCAST.get(self.precision)
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            self.utilisation = self.run()
        if device.type == "cuda":
            torch.cuda.synchronize()
            self.memory = torch.cuda.max_memory_allocated()
        else:
            self.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.seconds.append(time.perf_counter() - start)
        self.nfe = self.diffguard.nfe - nfe_before


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a square matrix product, the best of several sizes."""
    on_cuda = device.type == "cuda"
    best, repeats = 0.0, 20 if on_cuda else 5
    for n in (4096, 8192) if on_cuda else (1024, 2048):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        for _ in range(3):
            a @ b
        if on_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            a @ b
        if on_cuda:
            torch.cuda.synchronize()
        best = max(best, repeats * 2 * n**3 / (time.perf_counter() - start))
    return best


@torch.no_grad()
def flops_per_nfe(diffguard: DiffGuard, images: Tensor) -> int:
    """Return the FLOPs of one network evaluation of the diffusion model."""
    x = diffguard.backbone.encode(images[:1] * 2 - 1)
    t = labels = torch.zeros(1, dtype=torch.long, device=x.device)
    with FlopCounterMode(display=False) as counter:
        diffguard.backbone.eps(x, t, labels)
    return counter.get_total_flops()


def lines(
    args: argparse.Namespace, family: str, images: Tensor, device: torch.device
) -> Iterator[Line]:
    """Yield the lines of a pipeline, the naive one first."""
    config, settings = family, FULL[family]
    if args.model == "digits":
        config, settings = f"digits_{family}", {}
    elif args.model == "small":
        settings = small(family)

    def load(precision: str = "32", **changes: Any) -> DiffGuard:
        diffguard = diffguard_pl.load(config, **settings | changes).to(device)
        if precision in HALF:
            diffguard.networks_to(HALF[precision])
        return diffguard

    # The original's loop is in float32 for digits, and in the first precision else.
    first = args.precision[0]
    reference_precision = "32" if args.model == "digits" else first
    model = load(reference_precision)
    name = "naive" + note(reference_precision)
    yield Line(name, model, lambda m=model: naive(m, images[: args.naive]), reference_precision)

    if args.model == "digits":
        model = diffguard_pl.load(f"fast/digits_{family}").to(device)
        name = "engine, 64 slots, fast preset"
        yield Line(name, model, lambda m=model: engine(m, images, args.batch), "32")

    model = load(first)
    name = f"plain, batch {args.batch}{note(first)}"
    yield Line(name, model, lambda m=model: plain(m, images, args.batch), first)

    for precision in args.precision:
        for slots in args.slots:
            for compiled in (False, True) if args.compile else (False,):
                model = load(precision, slots=slots, compile=compiled)
                name = f"engine, {slots} slots{', compiled' if compiled else ''}{note(precision)}"
                yield Line(name, model, lambda m=model: engine(m, images, args.batch), precision)


def note(precision: str) -> str:
    """Return what the name of a line says of its precision."""
    return "" if precision == "32" else f", {precision}"


def benchmark_images(args: argparse.Namespace, family: str) -> Tensor:
    """Return images [N, 3, H, W] in [0, 1]: digits from each dataset, or smooth random ones."""
    if args.model == "digits":
        datasets = (digits("test"), held_out(), photos(), letters())
        parts = [data.images[:: max(1, len(data) * 4 // args.images)] for data in datasets]
        return torch.cat(parts)[: args.images]
    size = {"small": 64, "full": 224 if family == "gdm" else 256}[args.model]
    smooth = torch.rand(args.images, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(smooth, (size, size), mode="bicubic").clamp(0, 1)


def measure(args: argparse.Namespace, family: str, device: torch.device) -> dict[str, Any]:
    """Measure all lines of a pipeline."""
    images = benchmark_images(args, family).to(device)
    found = list(lines(args, family, images, device))

    # Warm-up: compilation, choice of algorithms, memory.
    for line in list(found):
        try:
            line.measure(device)
        except RuntimeError as error:  # such as too little memory
            if line is found[0]:
                raise
            print(f"{family}: {line.name}: left out: {str(error).splitlines()[0]}", flush=True)
            found.remove(line)
            continue
        line.warm_up = line.seconds.pop()
        print(f"{family}: {line.name}: first pass {line.warm_up:.1f} s", flush=True)

    for _ in range(args.rounds):
        for line in found:
            line.measure(device)
            print(f"{family}: {line.name}: {line.seconds[-1]:.1f} s", flush=True)

    # Rate of the matrix product in each dtype, after the rounds.
    flops = flops_per_nfe(found[0].diffguard, images)
    dtypes = {
        line.precision: (AUTOCAST | HALF).get(line.precision, torch.float32) for line in found
    }
    rates = {dtype: matmul_rate(device, dtype) for dtype in set(dtypes.values())}

    naive_count = min(args.naive, len(images))
    naive_rates = [naive_count / seconds for seconds in found[0].seconds]
    result = {"family": family, "flops_per_nfe": flops, "images": len(images), "lines": []}
    for line in found:
        count = naive_count if line is found[0] else len(images)
        seconds, rate = median(line.seconds), rates[dtypes[line.precision]]
        ratios = [count / s / naive for s, naive in zip(line.seconds, naive_rates, strict=True)]
        result["lines"].append(
            {
                "name": line.name,
                "images_per_second": count / seconds,
                "speed": median(ratios),
                "nfe_per_image": line.nfe / count,
                "nfe_per_second": line.nfe / seconds,
                "tflops": line.nfe / seconds * flops / 1e12,
                "fraction_of_matmul": line.nfe / seconds * flops / rate,
                "matmul_tflops": rate / 1e12,
                "utilisation": line.utilisation,
                "peak_memory_bytes": line.memory,
                "warm_up_seconds": line.warm_up - seconds,
                "seconds": line.seconds,
            }
        )
    return result


def show(result: dict[str, Any]) -> None:
    """Print a result as a table."""
    gflops = result["flops_per_nfe"] / 1e9
    table = Table(
        title=f"{result['family']}: {result['images']} images, {gflops:.3g} GFLOP per NFE"
    )
    table.add_column("")
    for name in ("images/s", "speed", "NFE/image", "NFE/s", "TFLOP/s", "of matmul", "full"):
        table.add_column(name, justify="right")
    for name in ("peak GB", "warm-up s"):
        table.add_column(name, justify="right")
    for line in result["lines"]:
        table.add_row(
            line["name"],
            f"{line['images_per_second']:.3g}",
            f"{line['speed']:.2f}x",
            f"{line['nfe_per_image']:.1f}",
            f"{line['nfe_per_second']:.0f}",
            f"{line['tflops']:.3g}",
            f"{line['fraction_of_matmul']:.0%}",
            "" if line["utilisation"] is None else f"{line['utilisation']:.1%}",
            f"{line['peak_memory_bytes'] / 1e9:.1f}",
            f"{line['warm_up_seconds']:.0f}",
        )
    Console(width=140).print(table)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=["digits", "small", "full"], default="digits")
    add("--family", nargs="+", choices=["gdm", "ldm"], default=["gdm", "ldm"])
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--images", type=int, default=500)
    add("--naive", type=int, default=48, help="images of the naive loop, which is slow")
    add("--batch", type=int, default=128, help="images that arrive together")
    add("--slots", type=int, nargs="+", default=[16, 32, 64, 128])
    add("--precision", nargs="+", choices=["32", *AUTOCAST, *HALF], default=["32"])
    add("--compile", action="store_true", help="measure each engine line compiled as well")
    add("--tf32", action="store_true")
    add("--rounds", type=int, default=3)
    add("--out", help="JSON file")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    warnings.filterwarnings("ignore")
    device = torch.device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    machine = platform.processor() or platform.machine()
    if device.type == "cuda":
        machine = torch.cuda.get_device_name()
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
