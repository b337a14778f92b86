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


def dump(model, ids, *args, out=TEMP / "o.safetensors", by="dsv3"):
    (TEMP / "ids.json").write_text(json.dumps(ids))
    result = program(by, "dump", model, "--ids", TEMP / "ids.json", "--out", out, *args)
    assert result.returncode == 0, result.stderr.decode()
    return golden(out)


def exact(case, *args):
    """Errors of logits, hidden states and MTP logits, and how many tokens were routed otherwise."""
    want = golden(CASES / case / "expected.safetensors")
    mtp = ["--mtp"] if "mtp_logits" in want["a"] else []
    got = dump(packed(CASES / case), {name: t["input_ids"].tolist() for name, t in want.items()}, *mtp, *args)
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
        got = dump(packed(CASES / case), {"a": ids}, "--gemm", f"fp8:{scale}")["a"]["logits"]
        difference = np.abs(got.astype(np.float64) - want[f"{scale}/a"]["logits"]) / np.abs(want[f"{scale}/a"]["logits"]).max()
        print(f"| {case} | e4m3, {scale} scales | {difference.mean():.1e} | {difference.max():.1e} |")


def head_errors(case, command, names):
    """Of the head's outputs for padded rows, as transformers gives them."""
    want = load_safetensors(CASES / case / "expected.safetensors")
    (TEMP / "rows.json").write_text(json.dumps({k: want[k].tolist() for k in ("input_ids", "attention_mask")}))
    result = dsv3(command, packed(CASES / case), "--ids", TEMP / "rows.json", "--json", "--exact")
    assert result.returncode == 0, result.stderr.decode()
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    pairs = []
    for row, mask, *values in zip(rows, want["attention_mask"], *(want[name] for name in names)):
        for name, value in zip(names, values):
            got = [token[name] for token in row] if isinstance(row, list) else row[name]
            pairs.append((np.array(got), value if command == "classify" else value[mask == 1]))
    return worst(pairs)


print("\n| case | outputs | largest difference |\n|---|---|---|")
for case, command, names in (("qwen3-moe-classify", "classify", ["logits"]), ("qwen3-moe-tag", "tag", ["logits"]),
                             ("qwen3-moe-answer", "answer", ["start_logits", "end_logits"])):
    print(f"| {case} | {' and '.join(names)} | {head_errors(case, command, names):.1e} |")
folder, out = CASES / "moe-transformer", TEMP / "layer.safetensors"
want = load_safetensors(folder / "expected.safetensors")
for name, mask in (("none", "none"), ("causal", "causal"), ("float", "float_mask")):
    result = dsv3("layer", packed(folder), "--in", folder / "expected.safetensors", "--out", out, "--mask", mask)
    assert result.returncode == 0, result.stderr.decode()
    print(f"| moe-transformer | hidden states, mask: {name} | {worst([(load_safetensors(out)['output'], want[f'output.{name}'])]):.1e} |")


def fast(case, backend, by):
    """A backend's fast mode against the golden: with the golden's experts, and choosing them itself."""
    want = golden(CASES / case / "expected.safetensors")
    model, ids = packed(CASES / case), {name: t["input_ids"].tolist() for name, t in want.items()}
    chosen = dump(model, ids, "--backend", "cpu", "--exact", out=TEMP / "exact.safetensors")
    at = {name: t.get("positions", slice(None)) for name, t in want.items()}
    for phase in ("prompt", "decode"):
        args = ["--backend", backend, "--phase", phase]
        given = dump(model, ids, *args, "--routing", TEMP / "exact.safetensors", by=by)
        free = dump(model, ids, *args, by=by)
        pairs = [(given[s]["logits"][at[s]], t["logits"]) for s, t in want.items()]
        mean = np.mean([np.abs(got - w).mean() / np.abs(w).max() for got, w in pairs])
        same = np.mean(np.concatenate([free[s]["logits"][at[s]].argmax(1) == t["logits"].argmax(1) for s, t in want.items()]))
        routed = np.mean(np.concatenate([(np.sort(free[s][k], 1) != np.sort(chosen[s][k], 1)).any(1)
                                         for s in want for k in free[s] if k.startswith("router_ids.")]))
        print(f"| {case} | {phase} | {mean:.1e} | {worst(pairs):.1e} | {1 - routed:.1%} | {same:.1%} |")


for backend, by in (("cpu", "dsv3"), ("cuda", "dsv3-cuda-host")):
    print("\n| case | phase | mean difference of logits | largest difference | free: tokens routed alike | free: same likeliest token |\n|---|---|---|---|---|---|")
    for case in decoder_cases():
        if case != "ds3-long":
            fast(case, backend, by)


def with_f8_head(folder):
    out = TEMP / "f8-head.dsv3"
    result = program("dsv3-convert", folder, out, "-q", "--force", "--head", "f8")
    assert result.returncode == 0, result.stderr.decode()
    return out


def perplexity(logits, following):
    logits = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return np.exp((np.log(np.exp(logits).sum(1)) - logits[np.arange(len(following)), following]).mean())


print("\n| model | tokens | mean difference of logits | largest difference | most likely token another | perplexity |\n|---|---|---|---|---|---|")
text = json.loads(dsv3("tokenize", DEMO, "--plain", stdin=(DEMO / "heldout.txt").read_bytes()).stdout)[:2048]
for folder in (DEMO, *(CASES / case for case in ("ds3-f32", "ds2-lite", "qwen3-moe", "mixtral"))):
    ids = text if folder == DEMO else golden(CASES / folder.name / "expected.safetensors")["a"]["input_ids"].tolist()
    rows = [[0, *ids[i:i + 511]] for i in range(0, len(ids), 511)] if folder == DEMO else [ids]
    sequences = {str(i): row for i, row in enumerate(rows)}
    keep, f8 = (np.concatenate([t["logits"][:-1] for t in dump(model, sequences).values()]) for model in (packed(folder), with_f8_head(folder)))
    following = np.concatenate([row[1:] for row in rows])
    difference = np.abs(f8.astype(np.float64) - keep) / np.abs(keep).max()
    changed = (f8.argmax(1) != keep.argmax(1)).mean()
    change = f"{perplexity(keep, following):.4f} -> {perplexity(f8, following):.4f}" if folder == DEMO else ""
    print(f"| {folder.name} | {len(keep)} | {difference.mean():.1e} | {difference.max():.1e} | {100 * changed:.1f} % | {change} |")
