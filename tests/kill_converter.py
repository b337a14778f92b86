#!/usr/bin/env python3
"""Kills dsv3-convert with SIGKILL at random moments and starts it again: every conversion must end with the same bytes as an
undisturbed one, and none may begin anew what an earlier start has made durable.

Usage: kill_converter.py BIN [--kills N] [--bytes N] [--seed N] [--folder F]     (50 kills of 2 GB: --kills 50 --bytes 2e9)
"""
import argparse
import filecmp
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import synthetic  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bin", type=pathlib.Path)
parser.add_argument("--kills", type=int, default=12)
parser.add_argument("--bytes", type=float, default=20e6)
parser.add_argument("--seed", type=int, default=None)
parser.add_argument("--folder", default=None, help="where the files go; default: the system's temporary folder")
args = parser.parse_args()
seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 32)
rng = random.Random(seed)
print(f"seed {seed}", flush=True)

ROOT = pathlib.Path(tempfile.mkdtemp(prefix="dsv3-kill-", dir=args.folder))
VARIANTS = [[], ["--split-size", f"{int(args.bytes / 3)}"], ["--consume"], ["--consume", "--split-size", f"{int(args.bytes / 5)}"]]
if args.bytes < 100e6:
    VARIANTS.append(["--dtype", "f8"])


def source():
    """A folder of its own with the same files, so that it can be consumed."""
    folder = ROOT / "source"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    for file in (ROOT / "master").iterdir():
        os.link(file, folder / file.name)
    return folder


def start(folder, out, options):
    return subprocess.Popen([args.bin / "dsv3-convert", folder, out / "m.dsv3", *options], stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)


def finish(process):
    text = process.communicate()[1]
    if process.returncode != 0:
        raise SystemExit(f"seed {seed}: dsv3-convert failed: {text}")
    return text


try:
    synthetic.make(ROOT / "master", args.bytes, seed=seed % 1000)
    good, seconds = {}, 0
    for i, options in enumerate(VARIANTS):
        good[i] = ROOT / f"good{i}"
        good[i].mkdir()
        began = time.monotonic()
        finish(start(source(), good[i], options))
        seconds = max(seconds, time.monotonic() - began)
    print(f"undisturbed: {seconds:.2f} s; {len(VARIANTS)} variants", flush=True)

    kills = conversions = resumed = 0
    while kills < args.kills:
        variant = rng.randrange(len(VARIANTS))
        options = VARIANTS[variant]
        folder, out = source(), ROOT / "out"
        out.mkdir()
        progress, longest = 0, seconds * 0.6
        while True:
            process = start(folder, out, options)
            # Longer each time: a small conversion can end sooner than it first makes something durable, and would never end.
            wait = rng.uniform(0, longest)
            longest *= 1.2
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
            text = process.communicate()[1]
            if process.returncode not in (0, -9):
                raise SystemExit(f"seed {seed}, {options}: {text}")
            found = re.search(r"unfinished conversion: (\d+) of", text)
            now = int(found.group(1)) if found else 0
            if found:
                resumed += 1
            if now < progress and " %" in text:
                raise SystemExit(f"seed {seed}, {options}: it had {progress} bytes and went on from {now}: {text}")
            progress = max(progress, now)
            if process.returncode == 0 or not any(p.name.endswith((".partial", ".journal")) for p in out.iterdir()) and any(out.iterdir()):
                break  # also when it was killed after its last act
        names = sorted(os.listdir(out))
        if names != sorted(os.listdir(good[variant])):
            raise SystemExit(f"seed {seed}, {options}: got {names}")
        for name in names:
            if not filecmp.cmp(out / name, good[variant] / name, shallow=False):
                raise SystemExit(f"seed {seed}, {options}: {name} differs")
        left = sorted(p.name for p in folder.iterdir() if "safetensors" in p.name and not p.name.endswith(".json"))
        if "--consume" in options and left:
            raise SystemExit(f"seed {seed}, {options}: not consumed: {left}")
        shutil.rmtree(out)
        conversions += 1
    print(f"{kills} kills, {conversions} conversions, {resumed} went on with what was there: all the same bytes", flush=True)
finally:
    shutil.rmtree(ROOT, ignore_errors=True)
