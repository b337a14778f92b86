#!/usr/bin/env python3
"""How fast dsv3-convert copies a checkpoint, as a share of what dd does with the same bytes on the same disk in the same run, and
how much memory it takes.

Usage: convert.py BIN [--bytes N] [--rounds N] [--folder F]      (F: a folder on the disk to be measured)
"""
import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tests"))
import synthetic  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bin", type=pathlib.Path)
parser.add_argument("--bytes", type=float, default=2e9)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--folder", default=None)
args = parser.parse_args()

ROOT = pathlib.Path(tempfile.mkdtemp(prefix="dsv3-bench-", dir=args.folder))


def timed(*command):
    """Seconds, and the largest resident memory in MB (never below this program's own), of a command that must succeed."""
    began = time.monotonic()
    pid = os.posix_spawnp(str(command[0]), [str(c) for c in command], os.environ,
                          file_actions=[(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)])
    _, status, usage = os.wait4(pid, 0)
    if status != 0:
        raise SystemExit(f"{command}: status {status}")
    return time.monotonic() - began, usage.ru_maxrss / 1024


try:
    folder = synthetic.make(ROOT / "source", args.bytes)
    shards = sorted(folder.glob("*.safetensors"))
    size = sum(p.stat().st_size for p in shards)
    print(f"{size / 1e9:.2f} GB in {len(shards)} shards, read from the page cache if it fits, written and synced to {ROOT}")
    variants = {"dd": ["sh", "-c", f"cat {folder}/*.safetensors | dd of={ROOT}/out bs=1M iflag=fullblock conv=fsync"],
                "convert": [args.bin / "dsv3-convert", folder, ROOT / "out", "-q"],
                "convert --dtype f8": [args.bin / "dsv3-convert", folder, ROOT / "out", "-q", "--dtype", "f8"]}
    rates, memory = {name: [] for name in variants}, dict.fromkeys(variants, 0.0)
    for round in range(args.rounds + 1):  # the first warms up
        for name, command in variants.items():
            seconds, peak = timed(*command)
            os.unlink(ROOT / "out")
            if round > 0:
                rates[name].append(size / seconds)
                memory[name] = max(memory[name], peak)
    for name in variants:
        rate = statistics.median(rates[name])
        share = rate / statistics.median(rates["dd"])
        print(f"{name:20} {rate / 1e9:6.2f} GB/s  {100 * share:4.0f} % of dd  peak memory at most {memory[name]:.0f} MB"
              f"  (rounds: {', '.join(f'{r / 1e9:.2f}' for r in rates[name])})")
finally:
    shutil.rmtree(ROOT, ignore_errors=True)
