"""Prints the measured error of every golden case as the tables of docs/accuracy.md: python3 tests/accuracy.py BIN_DIR"""
import pathlib, sys

sys.path.insert(0, str(pathlib.Path(__file__).parent / "cli"))
from support import *


def worst(pairs):
    """Largest difference over all sequences, as a share of the largest value of its tensor."""
    return max(float(np.abs(got.astype(np.float64) - want).max() / np.abs(want).max()) for got, want in pairs)


def golden(path):
    sequences = {}
    for key, values in load_safetensors(path).items():
        *sequence, name = key.split("/")
        sequences.setdefault("/".join(sequence), {})[name] = values
    return sequences


def dump(case, ids, *args):
    (TEMP / "ids.json").write_text(json.dumps(ids))
    result = dsv3("dump", packed(CASES / case), "--ids", TEMP / "ids.json", "--out", TEMP / "o.safetensors", *args)
    assert result.returncode == 0, result.stderr.decode()
    return golden(TEMP / "o.safetensors")


def exact(case, *args):
    """Errors of logits, hidden states and MTP logits, and how many tokens were routed otherwise."""
    want = golden(CASES / case / "expected.safetensors")
    mtp = ["--mtp"] if "mtp_logits" in want["a"] else []
    got = dump(case, {name: t["input_ids"].tolist() for name, t in want.items()}, *mtp, *args)
    at = {name: t.get("positions", slice(None)) for name, t in want.items()}
    errors = [worst((got[s]["logits"][at[s]], t["logits"]) for s, t in want.items()),
              worst((got[s]["hidden"][:, at[s]], t["hidden"]) for s, t in want.items())]
    errors.append(worst((got[s]["mtp_logits"], t["mtp_logits"]) for s, t in want.items()) if mtp else None)
    routed = sum(int((np.sort(got[s][k], 1)[at[s] if len(got[s][k]) == len(got[s]["logits"]) else slice(None)] != np.sort(v, 1)).any(1).sum())
                 for s, t in want.items() for k, v in t.items() if k.startswith("router_ids."))
    return errors, routed


print("| case | attention | logits | hidden states | MTP logits | tokens routed otherwise |\n|---|---|---|---|---|---|")
for case in decoder_cases():
    mla = "kv_lora_rank" in json.loads((CASES / case / "config.json").read_text())
    for attention in ("absorbed", "expanded") if mla else ("absorbed",):
        (logits, hidden, mtp), routed = exact(case, "--attention", attention)
        print(f"| {case} | {attention if mla else 'grouped'} | {logits:.1e} | {hidden:.1e} | {f'{mtp:.1e}' if mtp is not None else ''} | {routed} |")

print("\n| case | activations | mean difference of logits | largest difference |\n|---|---|---|---|")
for case in sorted(path.parent.name for path in CASES.glob("*/expected_w8a8.safetensors")):
    ids = golden(CASES / case / "expected.safetensors")["a"]["input_ids"].tolist()
    want = golden(CASES / case / "expected_w8a8.safetensors")
    for scale in ("f32", "ue8m0"):
        got = dump(case, {"a": ids}, "--gemm", f"fp8:{scale}")["a"]["logits"]
        difference = np.abs(got.astype(np.float64) - want[f"{scale}/a"]["logits"]) / np.abs(want[f"{scale}/a"]["logits"]).max()
        print(f"| {case} | e4m3, {scale} scales | {difference.mean():.1e} | {difference.max():.1e} |")
