"""`python -m benchmarks.speed`: what the benchmark itself costs.

Each ratio compares two things measured in turn in one run, so that a noisy machine slows both. Wall times are printed
beside them for orientation. `--step` measures a training step of the default suite against its former one, `--loops` the
training loops alone, `--explanations` the explanations alone,
`--examining` what examining a suspect costs a case, with few cases and with many, `--architectures` what a training step and
an answer cost with each network, `--suite` the default suite alone.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
STEPS = 12
ROUNDS = 5


def loops() -> None:
    """The training loop against a bare one, and marking against clean training, over the same tensors, model and loss."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    from stealthmark.architecture import foreground
    from stealthmark.plugin import make
    from stealthmark.settings import Schedule
    from stealthmark.training import fit

    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (16 * STEPS, 3, 96, 96), dtype=torch.uint8)
    masks = (torch.rand(16 * STEPS, 96, 96) < 0.2).to(torch.uint8)
    model = make("architecture", {"name": "unet", "weights": "random"}).build(3, pretrained=False, size=96)
    model.to(memory_format=torch.channels_last).train()
    clean, mark = make("method", {"name": "clean"}), make("method", {"name": "stealthmark", "trigger": "warp"})
    key = mark.make_key(1, (3, 96, 96))
    floats = (images.float() / 255).contiguous(memory_format=torch.channels_last)
    targets = masks.float()

    def bare() -> None:
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(STEPS):
            part = slice(16 * step, 16 * step + 16)
            loss = binary_cross_entropy_with_logits(foreground(model, floats[part]), targets[part])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

    def ours(method, its_key) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                make_batch = lambda i, m, p, r: method.mark_batch(i, m, its_key, p, r)  # noqa: E731
                fit(model, images, masks, Schedule(epochs=1), make_batch, 0, Path(folder) / "state", "speed")

        return run

    sides = {"bare": bare, "clean": ours(clean, None), "marking": ours(mark, key)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(ROUNDS + 1):  # the first warms up
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if turn:
                seconds[name].append((time.perf_counter() - started) / STEPS)
    for name, values in seconds.items():
        print(f"{name}: {statistics.median(values) * 1000:.0f} ms a step (batch 16, 96 px, one thread)")
    ratio = lambda a, b: statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))  # noqa: E731
    print(f"throughput of the training loop / bare PyTorch loop: {ratio('bare', 'clean'):.3f}  (aim: >= 0.9)")
    print(f"marking / clean training, time a step: {ratio('marking', 'clean'):.3f}  (aim: <= 1.15)")


#: The U-Net of the default suite up to version 0.4, and now.
FORMER, DEFAULT = {"name": "unet"}, {"name": "unet", "stages": 4, "decoder": [64, 32, 16]}


def step() -> None:
    """A training step of the default suite's former network against one of its network now.

    Also: AdamW in many kernels or in one, new memory filled with NaN or not. Seconds of the processor, which no other job
    lengthens much.
    """
    import torch

    from stealthmark.device import choose
    from stealthmark.method import Batch
    from stealthmark.plugin import make
    from stealthmark.settings import Schedule
    from stealthmark.training import augment, loss_on, optimiser_for

    choose("cpu", 1)
    torch.manual_seed(0)
    images, masks, rng = torch.rand(16, 3, 64, 64), torch.rand(16, 64, 64).round(), torch.Generator().manual_seed(0)

    def side(options: dict, former: bool) -> Callable[[], float]:
        model = make("architecture", options).build(3, pretrained=True, size=64)
        model.to(memory_format=torch.channels_last).train()
        optimiser = torch.optim.AdamW(model.parameters()) if former else optimiser_for(Schedule(), model)

        def run() -> float:
            torch.utils.deterministic.fill_uninitialized_memory = former
            started = time.process_time()
            loss = loss_on(model, Batch(*augment(images, masks, rng)))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            return time.process_time() - started

        return run

    old, new = side(FORMER, former=True), side(DEFAULT, former=False)
    seconds = [(old(), new()) for _ in range(4 * ROUNDS)][ROUNDS:]  # the first warm up
    old_median, new_median = (1000 * statistics.median(values) for values in zip(*seconds, strict=True))
    print(f"a training step (batch 16, 64 px, one core): {new_median:.0f} ms, of the former default {old_median:.0f} ms")
    print(f"former / default: {statistics.median(a / b for a, b in seconds):.2f}")


QUERIES = 1024
BATCHES = (16, 32, 64, 128, 256)


def explanations() -> None:
    """LIME in batches against the bare forward passes at their best batch size, and against captum's Lime as it comes."""
    import torch
    from captum.attr import Lime

    from stealthmark.architecture import foreground
    from stealthmark.occlusion import QUANTITIES, cells, lime
    from stealthmark.plugin import make
    from stealthmark.suspects.checkpoint import from_model

    torch.set_num_threads(os.cpu_count())  # an explanation runs alone
    torch.manual_seed(0)
    model = make("architecture", {"name": "unet", "weights": "random"}).build(3, pretrained=False, size=64).eval()
    model.to(memory_format=torch.channels_last)
    image, device = torch.rand(3, 64, 64), torch.device("cpu")
    queries = torch.rand(QUERIES, 3, 64, 64).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def bare(batch: int) -> None:
        for part in queries.split(batch):
            foreground(model, part).sigmoid()

    def ours() -> None:
        lime(from_model(model, device), image, "foreground-mean", 13, QUERIES, torch.Generator().manual_seed(0))

    def captums() -> None:
        predictor = from_model(model, device)
        explained = Lime(lambda images: QUANTITIES["foreground-mean"](predictor(images)))
        mask = cells(64, 64, 13)[None, None]
        explained.attribute(image[None], baselines=0.0, feature_mask=mask, n_samples=QUERIES, return_input_shape=False)

    def seconds(side: Callable[..., None], *argv: int) -> float:
        started = time.perf_counter()
        side(*argv)
        return time.perf_counter() - started

    best = min(BATCHES, key=lambda batch: min(seconds(bare, batch) for _ in range(2)))
    rounds = [(seconds(bare, best), seconds(ours), seconds(captums)) for _ in range(ROUNDS)]
    took = statistics.median(own for _, own, _ in rounds)
    print(f"an explanation of {QUERIES} queries (64 px, {os.cpu_count()} threads): {took:.1f} s")
    ratio = statistics.median(own / forward for forward, own, _ in rounds)
    print(f"explanation / bare forward passes at the best batch size ({best}): {ratio:.3f}  (aim: <= 1.15)")
    ratio = statistics.median(theirs / own for _, own, theirs in rounds)
    print(f"captum's Lime, one perturbation a call / explanation: {ratio:.1f}  (aim: >= 5)")


#: The networks that are timed: the defaults, and where the default's weights are fetched from a hub, random ones.
TIMED = ({"name": "sam", "weights": "random"}, {"name": "sam", "encoder": "mobile", "weights": "random"})
TIMED_SIZE, TIMED_BATCH, TIMED_STEPS = 96, 16, 3


def architectures() -> None:
    """A table: parameters, operations, seconds a training step (and how many times as fast it is in bfloat16), peak memory,
    images answered in a second. Each network in a process of its own, whose memory is counted whole; seconds are the
    processor's, which no other job lengthens much."""
    from stealthmark import plugins

    every = [*({"name": name} for name in plugins.known("architecture") if name != "sam"), *TIMED]
    print(f"batch {TIMED_BATCH}, {TIMED_SIZE} px, 3 channels, AdamW, one core; median of {TIMED_STEPS} steps")
    columns = "parameters (M) | GFLOPs an image | s a training step | in bfloat16 | peak memory (GiB) | images/s, inference"
    print(f"| architecture | {columns} |\n| --- |{' ---: |' * 6}", flush=True)
    for options in every:
        command = [sys.executable, "-m", "benchmarks.speed", "--architecture", json.dumps(options)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"error: {options['name']} failed: {done.stderr.strip().splitlines()[-1]}")
        print(done.stdout.strip(), flush=True)


def one_architecture(options: dict) -> None:
    """A line of the table: `fit`'s own step (forward, backward, AdamW) on random images, then answers without gradients."""
    import resource

    import torch

    from stealthmark.method import Batch
    from stealthmark.plugin import make
    from stealthmark.training import loss_on

    torch.set_num_threads(1)
    torch.manual_seed(0)
    plugin = make("architecture", options)
    cost = plugin.cost(3, TIMED_SIZE)
    model = plugin.build(3, pretrained=False, size=TIMED_SIZE).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters())
    batch = Batch(torch.rand(TIMED_BATCH, 3, TIMED_SIZE, TIMED_SIZE), torch.rand(TIMED_BATCH, TIMED_SIZE, TIMED_SIZE).round())

    def step(short: bool = False) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=short):
            loss = loss_on(model, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    @torch.inference_mode()
    def answer() -> None:
        model(batch.images.contiguous(memory_format=torch.channels_last))

    def median(work: Callable[[], None]) -> float:
        seconds = []
        for _ in range(TIMED_STEPS + 1):  # the first warms up
            started = time.process_time()
            work()
            seconds.append(time.process_time() - started)
        return statistics.median(seconds[1:])

    training = median(step)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    faster = training / median(lambda: step(short=True))
    model.eval()
    name = "-".join(map(str, options.values()))
    cells = [f"{cost.parameters / 1e6:.1f}", f"{cost.flops / 1e9:.2f}", f"{training:.2f}", f"x {faster:.2f}"]
    print(f"| {name} | {' | '.join(cells)} | {peak / 2**30:.2f} | {TIMED_BATCH / median(answer):.0f} |")


#: Test cases that a suspect is examined with, few and many: neither time nor memory a case may grow.
CASES, CASE_SIZE = (1_000, 100_000), 32


def examining(counts: tuple[int, ...] = CASES) -> None:
    """Milliseconds a case (the processor's, which no other job lengthens much), and memory, of examining one suspect at three
    access levels. Each in a process of its own."""
    print(f"examining one suspect, {CASE_SIZE} px, three access levels, one thread")
    for count in counts:
        command = [sys.executable, "-m", "benchmarks.speed", "--examine", str(count)]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"error: examining {count} cases failed: {done.stderr.strip().splitlines()[-1]}")
        print(done.stdout.strip(), flush=True)


def examine_made_up(count: int) -> None:
    """`stages.examine` on `count` random cases, all of them test cases."""
    import resource

    import numpy as np
    import pandas as pd
    import torch

    from stealthmark import architecture, stored
    from stealthmark.layout import Place
    from stealthmark.method import Detector
    from stealthmark.plugin import make
    from stealthmark.stages.examine import examine

    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng, shape = np.random.default_rng(0), (count, 1, CASE_SIZE, CASE_SIZE)
        images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
        masks = np.lib.format.open_memmap(folder / "masks.npy", "w+", np.uint8, (count, CASE_SIZE, CASE_SIZE))
        masks[:, 8:20, 10:24] = 1
        digest = hashlib.sha256()
        for row in range(count):
            images[row] = rng.integers(0, 256, shape[1:], dtype=np.uint8)
            digest.update(images[row].tobytes() + masks[row].tobytes())
        numbers = [str(number) for number in range(count)]
        parts = {"case_id": numbers, "group_id": numbers, "share": "test", "foreground": float(masks[0].mean())}
        cases = pd.DataFrame(parts)
        cases.to_csv(folder / "cases.csv", index=False)
        made_up = stored.Manifest(
            **dict.fromkeys(("title", "citation", "licence", "address", "size", "foreground", "groups"), "made up"),
            redistributable=True,
        )
        manifest = stored.manifest_of(made_up, cases, 1, CASE_SIZE, digest.hexdigest())
        (folder / "manifest.json").write_text(json.dumps(manifest))
        options = {"name": "unet", "weights": "random"}
        model = make("architecture", options).build(1, pretrained=False, size=CASE_SIZE).eval()
        architecture.save(model, architecture.card_for(options, 1, CASE_SIZE), folder / "model")
        method = make("method", {"name": "stealthmark", "trigger": "border"})
        detector = Detector(threshold=0.0, fitted_on={})
        detectors = dict.fromkeys(("probabilities", "rounded-0.1", "label"), detector)
        method.make_key(1, shape[1:]).model_copy(update={"detectors": detectors}).write(folder / "key.json")
        del images, masks
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.process_time()
        suspects = [(Place(), folder / "model")]
        examine(folder, folder / "key.json", suspects, folder / "evidence", torch.device("cpu"))
        took = time.process_time() - started
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{count} cases: {1000 * took / count:.2f} ms a case; {grown:.0f} MB more in all, {grown / count:.4f} MB a case")


def suite(cores: int) -> None:
    """The default suite from nothing, then again: wall time, peak memory, and the share that is not computing."""
    results = ROOT / "results" / "quick"
    shutil.rmtree(results, ignore_errors=True)
    first, memory = _timed(cores)
    runs = [json.loads(file.read_text()) for file in results.rglob("run.json")]
    computing = sum(run["seconds"] for run in runs) / cores
    again, _ = _timed(cores)
    print(f"default suite on {cores} cores: {first:.0f} s  (aim: <= 600), peak memory {memory / 2**30:.2f} GiB (aim: < 4)")
    print(f"second run: {again:.1f} s  (aim: < 20)")
    share = 1 - computing / first
    print(f"start-up, Snakemake, tables and idle cores / wall time: {share:.3f}  (aim: <= 0.15), {len(runs)} jobs")


def _timed(cores: int) -> tuple[float, int]:
    """Seconds and peak memory in bytes (unique pages of all processes) of one `make reproduce`."""
    started, peak = time.perf_counter(), 0
    command = ["make", "reproduce", f"CORES={cores}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as make:
        tree = psutil.Process(make.pid)
        while make.poll() is None:
            peak = max(peak, sum(map(_unique, [tree, *tree.children(recursive=True)])))
            time.sleep(2)
    if make.returncode:
        sys.exit("error: make reproduce failed; run it by hand to see why")
    return time.perf_counter() - started, peak


def _unique(process: psutil.Process) -> int:
    """Bytes; shared pages in proportion. The kernel's own sum: adding up a process's maps took a sixth of the machine."""
    try:
        sums = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except OSError:  # gone, or not Linux
        return 0
    return 1024 * int(re.search(r"^Pss:\s+(\d+) kB", sums, re.MULTILINE)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = {
        "step": step,
        "loops": loops,
        "explanations": explanations,
        "examining": examining,
        "architectures": architectures,
    }
    for name in (*parts, "suite"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--architecture", type=json.loads, help=argparse.SUPPRESS)  # one line of the table
    parser.add_argument("--examine", type=int, help=argparse.SUPPRESS)  # one line of examining
    args = parser.parse_args()
    if args.examine:
        return examine_made_up(args.examine)
    if args.architecture:
        return one_architecture(args.architecture)
    asked = [name for name in (*parts, "suite") if getattr(args, name)] or [*parts, "suite"]
    for name in asked:
        suite(args.cores) if name == "suite" else parts[name]()


if __name__ == "__main__":
    main()
