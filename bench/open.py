#!/usr/bin/env python3
"""How long dsv3_model_open takes on the wall, and how much memory of its own: of a model with as many tensors as the largest
there are, 92,000 and more, or of one that is given.

Usage: open.py BIN [--model M.dsv3] [--rounds N] [--folder F]      (BIN: where the programs are; ../lib has the library)
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bindings/python"))
import dsv3  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bin", type=pathlib.Path)
parser.add_argument("--model", type=pathlib.Path)
parser.add_argument("--rounds", type=int, default=15)
parser.add_argument("--folder", default=None)
args = parser.parse_args()

# DeepSeek-V3's layers and twice its experts, each as small as can be.
MANY = {"num_hidden_layers": 61, "first_k_dense_replace": 1, "n_routed_experts": 512, "n_group": 8, "topk_group": 4, "num_nextn_predict_layers": 0, "hidden_size": 32,
        "intermediate_size": 16, "moe_intermediate_size": 16, "vocab_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1,
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16}


def anonymous():
    """MB of resident memory that is no file's."""
    line = next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


with tempfile.TemporaryDirectory(prefix="dsv3-bench-", dir=args.folder) as folder:
    model = args.model
    if not model:
        config = {**json.loads((ROOT / "bench/configs/deepseek-v3.json").read_text()), **MANY}
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))
        model = pathlib.Path(folder) / "many.dsv3"
        subprocess.run([args.bin / "dsv3-convert", "-q", "--random", f"{folder}/config.json", model], check=True)
    dsv3.load(str(args.bin.resolve().parent / "lib/libdsv3.so"))
    before, peak, wall, processor = anonymous(), 0.0, [], []
    for _ in range(args.rounds):
        clock, cpu = time.perf_counter(), time.process_time()
        opened = dsv3.Model(str(model))
        wall.append(1000 * (time.perf_counter() - clock))
        processor.append(1000 * (time.process_time() - cpu))
        peak = max(peak, anonymous() - before)
        opened.close()
    with dsv3.Model(str(model)) as opened:
        tensors = len(json.loads(opened.describe())["tensors"])
    print(f"{tensors} tensors: opened in {min(wall):.1f} ms on the wall at best, {statistics.median(wall):.1f} in the median, {max(wall):.1f} "
          f"at worst of {args.rounds}; processor time {min(processor):.1f} ms at best; {peak:.0f} MB of memory, on {os.cpu_count()} cores, load "
          f"{os.getloadavg()[0]:.1f}")
