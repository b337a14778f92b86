#!/usr/bin/env python3
"""Makes corpus/ from the golden results: small inputs that each target takes, for it to change.

Inputs named finding-* are kept: each once broke a target."""
import json, pathlib, struct

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden"


def seed(target, name, content):
    path = HERE / "corpus" / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def header_of(shard):
    raw = shard.read_bytes()
    return json.loads(raw[8:8 + struct.unpack_from("<Q", raw)[0]])


# ---- tokenizers ------------------------------------------------------------------------------------------------------

def byte_alphabet():
    """GPT-2's characters for the bytes 0..255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def small_tokenizer(folder, n_merges=24):
    """A golden's tokenizer.json with the bytes and a few merges left; its added tokens follow them."""
    tokenizer = json.loads((GOLDEN / "tokenizers" / folder / "tokenizer.json").read_text())
    model, tokens, merges = tokenizer["model"], byte_alphabet(), []
    for merge in model["merges"]:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if all(part in tokens for part in parts) and len(merges) < n_merges:
            merges.append(merge)
            tokens.append("".join(parts))
    model["vocab"], model["merges"] = {token: i for i, token in enumerate(tokens)}, merges
    tokenizer["added_tokens"] = tokenizer["added_tokens"][:4]
    for i, added in enumerate(tokenizer["added_tokens"]):
        added["id"] = len(tokens) + i
    return tokenizer


def patterns(part):
    """Every Regex in a tokenizer.json."""
    if isinstance(part, dict):
        return [v for k, v in part.items() if k == "Regex"] + [p for v in part.values() for p in patterns(v)]
    return [p for v in part for p in patterns(v)] if isinstance(part, list) else []


def tokenizers():
    text = "Hello wörld, it's 2024!\r\n  中文 x\t"
    for folder in ("deepseek-v2", "deepseek-v3"):
        tokenizer = small_tokenizer(folder)
        config = {"bos_token": tokenizer["added_tokens"][0]["content"], "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True}
        seed("tokenizer_json", folder, compact(tokenizer) + "\0" + compact(config))
        for i, pattern in enumerate(patterns(tokenizer["pre_tokenizer"])):
            seed("regex", f"{folder}-{i}", pattern + "\0" + text)
    pairs = small_tokenizer("deepseek-v3", 3)
    pairs["model"]["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in pairs["model"]["merges"]]
    pairs["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    seed("tokenizer_json", "pairs", compact(pairs))
    seed("regex", "classes", r"[\p{Han}]+|[^\r\n\p{L}]?[\p{Lu}\p{M}&&[^\p{Han}]]*(?i:'s|'d)?|\s+(?!\S)|\s+" + "\0" + text)
    seed("regex", "exponential", "(?:a+)+b\0" + "a" * 40)
    lines = (GOLDEN / "tokenizers/kimi-k2/tiktoken.model").read_text().splitlines()[:280]
    config = json.loads((GOLDEN / "tokenizers/kimi-k2/tokenizer_config.json").read_text())
    added = list(config["added_tokens_decoder"].values())[:3]
    config["added_tokens_decoder"] = {str(280 + i): token for i, token in enumerate(added)}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        config.pop(key, None)
    seed("tiktoken", "kimi", "\n".join(lines) + "\n\0" + compact(config))
    seed("tiktoken", "four", "YQ== 0\nYg== 1\nYWI= 2\nYWJhYg== 3\n")
    seed("added_tokens", "user", "<|User|>\n<|User\n<|end|>\n<\0<|User|>Hi<|end|><|Use<|User|")
    seed("added_tokens", "prefixes", "a\naa\nab\nabc\nb\0aabcaaabab")


# ---- checkpoints -----------------------------------------------------------------------------------------------------

def checkpoints():
    for folder in sorted((GOLDEN / "cases").iterdir()):
        if (folder / "config.json").exists():
            seed("config", folder.name, compact(json.loads((folder / "config.json").read_text())))
    for case in ("ds3-fp8", "mixtral"):
        header = header_of(sorted((GOLDEN / "cases" / case).glob("model*.safetensors"))[0])
        entries = sorted(((k, v) for k, v in header.items() if k != "__metadata__"), key=lambda e: e[1]["data_offsets"][0])[:4]
        begin = entries[0][1]["data_offsets"][0]
        for _, entry in entries:
            entry["data_offsets"] = [offset - begin for offset in entry["data_offsets"]]
        seed("safetensors", case, b"\1" + compact({"__metadata__": {"format": "pt"}, **dict(entries)}).encode())
    text = b'{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"F4","shape":[2,1],"data_offsets":[2,3]}}'
    seed("safetensors", "whole", b"\0" + struct.pack("<Q", len(text)) + text + b"abc")
    seed("checkpoint", "good", compact({"metadata": {"total_size": 7}, "weight_map": {
        "x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}))
    for i, shard in enumerate(("../out.safetensors", "/dev/zero", "b.safetensors/", "c.safetensors", ".safetensors")):
        seed("checkpoint", f"shard-{i}", compact({"weight_map": {"w": shard, "x": "a.safetensors"}}))
    seed("json", "kinds", '{"a":[1,-2,3.5e-7,true,false,null,"\\u00e9\\ud83d\\ude00\\n"],"b":{"c":{}},"d":9223372036854775807}')
    seed("json", "deep", "[" * 64 + "]" * 64)
    seed("json", "text", ' {"k\\"ey" : "\x7f é 中 😀" , "e":1E+30}\n')


# ---- packed files ----------------------------------------------------------------------------------------------------

def packed(tensors, extents, sections, text='{"config":{}}'):
    """The index of docs/format.md; the target puts places and hashes right. tensors: (name, dtype, shape, blocks or None,
    extent, alias, offset, bytes, scale offset, scale bytes)."""
    names, table = b"", b""
    for name, dtype, shape, blocks, extent, alias, *places in tensors:
        dims = [*shape, 1, 1, 1][:4]
        rows, columns = blocks or (0, 0)
        table += struct.pack("<QI4B4Q4I4Q", len(names), len(name), dtype, len(shape), blocks is not None, 0, *dims, rows, columns,
                             extent, 0xFFFFFFFF if alias is None else alias, *places)
        names += name.encode()
    end, extent_table = 4096, b""
    for n in extents:
        extent_table += struct.pack("<IIQQQ", 0, 0, end, n, 0)
        end += n
    parts = [text.encode(), names + "".join(sections).encode(), table, extent_table, b"", b""]
    sizes = [len(part) for part in parts]
    sizes[4] = 32 * len(sections)
    offsets, at = [], 256
    for n in sizes:
        offsets.append((at + 63) // 64 * 64)
        at = offsets[-1] + n
    name_at, data_at = len(names), offsets[5]
    for name, content in sections.items():
        data_at = (data_at + 63) // 64 * 64
        parts[4] += struct.pack("<QIIQQ", name_at, len(name), 0, data_at, len(content))
        parts[5] = parts[5].ljust(data_at - offsets[5], b"\0") + content.encode()
        name_at += len(name)
        data_at += len(content)
    sizes[5] = len(parts[5])
    index = bytearray(struct.pack("<8sIIQQQ16sII", b"DSV3PACK", 1, 256, end, 4096, 0, b"", 0, 1))
    for offset, n in zip(offsets, sizes):
        index += struct.pack("<QQ", offset, n)
    index = index.ljust(256, b"\0")
    for offset, part in zip(offsets, parts):
        index = index.ljust(offset, b"\0") + part
    return bytes([3]) + bytes(index)


def packs():
    seed("pack", "one", packed([("w", 0, [3], None, 0, None, 0, 12, 0, 0)], [4096], {}))
    seed("pack", "all", packed([
        ("e.gate", 3, [130, 64], (128, 128), 1, None, 0, 8320, 8320, 8), ("e.up", 3, [130, 64], (128, 128), 1, None, 8384, 8320, 16704, 8),
        ("norm", 1, [5], None, 0, None, 0, 10, 0, 0), ("z.copy", 1, [5], None, 0, 2, 0, 10, 0, 0)],
        [4096, 20480], {"config.json": "{}", "empty": "", "tokenizer.json": '{"model":1}'}))
    seed("pack", "none", packed([], [], {"a": "x"}))


# ---- what programs leave for later ones ------------------------------------------------------------------------------

def journals():
    def record(extent):
        return struct.pack("<IIQQ", extent, 0, extent * 12345, 0)
    key = b'{"a":1}'
    seed("pack_journal", "own", b"\3" + record(0) + record(2))
    seed("pack_journal", "ends", b"\3" + b"".join(map(record, (0, 1, 2, 3, 0xFFFFFFFF))))
    seed("pack_journal", "other", b"\2" + b"DSV3JRNL" + struct.pack("<II16sQQ", 1, 2, b"layout", len(key), 0) + key + record(1))


def sessions():
    """Of 2 layers with 6 cached f32 values each; the header is the harness's but for the number of sequences."""
    def saved(lengths):
        n = sum(lengths)
        return (b"\3" + bytes(12) + struct.pack("<I", len(lengths)) + bytes(64) + struct.pack(f"<{len(lengths)}i", *lengths)
                + struct.pack(f"<{n}i", *(i % 8 for i in range(n))) + b"".join(struct.pack("<f", i / 8) for i in range(12 * n)) + bytes(8))
    for name, lengths in (("none", []), ("one", [3]), ("hole", [2, 0, 66]), ("empty", [0, 0])):
        seed("saved_session", name, saved(lengths))


def answers():
    call = '{"name": "f", "arguments": {"a": [1, "x"]}}'
    begin, end, sep = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
    for name, prompt, text in (
            ("qwen3", "<think>\n", f"hm\n</think>\n\nSee:\n<tool_call>\n{call}\n</tool_call>\n<tool_call>{call}</tool_call>"),
            ("deepseek-v3", "", f"a\n<｜tool▁calls▁begin｜>{begin}function{sep}f\n```json\n{{}}\n```{end}\n{begin}x{end}<｜tool▁calls▁end｜>"),
            ("deepseek-v31", "</think>", f"<｜tool▁calls▁begin｜>{begin}f{sep}{{}}{end}<｜tool▁calls▁end｜>\n"),
            ("kimi-k2", "", '<think>x</think>\n<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"a": 1}<|tool_call_end|>'
                            "<|tool_calls_section_end|>b")):
        seed("output_parser", name, b"\5" + f"{prompt}\0{text}".encode())
    for name, config in (("released", {"bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 0.6, "top_p": 0.95, "transformers_version": "4.46.3"}),
                         ("list", {"eos_token_id": [151645, 151643, -1], "do_sample": True, "top_k": 20, "repetition_penalty": 1.05, "min_p": 0, "typical_p": 1}),
                         ("greedy", {"eos_token_id": None, "temperature": None})):
        seed("generation_config", name, compact(config))


def templates():
    """Each golden template with the longest of its short rows."""
    folder, arguments = GOLDEN / "templates", {}
    for line in (folder / "cases.jsonl").read_text().splitlines():
        row = json.loads(line)
        text = compact(row["arguments"])
        if "text" in row and len(text) < 2000:
            arguments[row["template"]] = max(arguments.get(row["template"], ""), text, key=len)
    for name, text in arguments.items():
        seed("jinja", name.removesuffix(".jinja"), (folder / name).read_text() + "\0" + text)


if __name__ == "__main__":
    tokenizers()
    templates()
    checkpoints()
    packs()
    journals()
    sessions()
    answers()
