"""dsv3 tokenize against the goldens of five released tokenizers' structures, and models that come with them."""
from support import *

FAMILIES = ("deepseek-v3", "deepseek-v2", "kimi-k2", "qwen3", "mixtral")
EXACT = ("deepseek-v3", "deepseek-v2", "kimi-k2")  # whose texts come back byte for byte, whatever they are
BOS = "<｜begin▁of▁sentence｜>"


def rows_of(family):
    # Not splitlines(): a JSON string may hold U+2028.
    return [json.loads(line) for line in (TOKENIZERS / family / "cases.jsonl").read_text().split("\n") if line]


class Tokenize(Case):
    def tokenize(self, path, data, *args):
        if isinstance(data, str):
            data = data.encode()
        return self.ok(dsv3("tokenize", path, *args, stdin=data))

    def ids(self, path, data, *args):
        line = self.tokenize(path, data, *args)
        self.assertEqual((line.count(b"\n"), line[-1:]), (1, b"\n"))
        return json.loads(line)

    def rows(self, path, rows):
        return [json.loads(line) for line in self.tokenize(path, "".join(json.dumps(row) + "\n" for row in rows), "--jsonl").splitlines()]

    def test_golden_rows(self):
        for family in FAMILIES:
            want = rows_of(family)
            got = self.rows(TOKENIZERS / family, want)
            self.assertEqual(len(got), len(want))
            for g, w in zip(got, want):
                with self.subTest(family, text=w["text"]):
                    self.assertEqual({key: g.get(key) for key in w if key != "text"}, {key: w[key] for key in w if key != "text"})
                    self.assertEqual("with_special" in g, "with_special" in w)

    def test_one_text(self):
        for family in FAMILIES:
            for row in rows_of(family)[::20]:
                with self.subTest(family, text=row["text"]):
                    self.assertEqual(self.ids(TOKENIZERS / family, row["text"]), row["ids"])
                    self.assertEqual(self.ids(TOKENIZERS / family, row["text"], "--plain"), row["plain"])
                    decoded = self.tokenize(TOKENIZERS / family, json.dumps(row["ids"]), "--decode")
                    self.assertEqual(decoded.decode(), row["decoded"])

    def test_bytes_survive(self):
        """Whatever the bytes: what is encoded decodes to itself, byte for byte."""
        texts = [bytes(range(256)), b"\xff\xfe", b"\xf0\x9f\x98", b"a\0b\r\n", "é—😀".encode()[:-1], b"\n", b""]
        for path in (*(TOKENIZERS / family for family in EXACT), DEMO):
            for data in texts:
                ids = self.tokenize(path, data, "--plain")
                self.assertEqual(self.tokenize(path, ids, "--decode"), data)

    def test_what_a_normalizer_changes(self):
        """Qwen3 composes characters; Mixtral's spaces are letters, and bytes stand for what its vocabulary lacks."""
        for family, data, back in (("qwen3", "e\u0301 \u212b", "é Å"), ("mixtral", "▁a", " a"), ("mixtral", "  \u212b 中\0", "  \u212b 中\0")):
            ids = self.tokenize(TOKENIZERS / family, data, "--plain")
            self.assertEqual(self.tokenize(TOKENIZERS / family, ids, "--decode").decode(), back)
        ids = self.tokenize(TOKENIZERS / "mixtral", b"\xff\xfe a", "--plain")
        self.assertEqual(self.tokenize(TOKENIZERS / "mixtral", ids, "--decode"), b"\xff\xfe a")

    def test_packed_file_and_folder_agree(self):
        text = "<｜User｜>It was—as he said—<｜Assistant｜>" + BOS
        for options in ([], ["--plain"], ["--bos"], ["--bos", "--plain"]):
            self.assertEqual(self.ids(packed(DEMO), text, *options), self.ids(DEMO, text, *options))

    def test_beginning_of_sentence(self):
        self.assertNotEqual(self.ids(DEMO, "Fanny was")[0], 0)
        self.assertEqual(self.ids(DEMO, "Fanny was", "--bos"), [0, *self.ids(DEMO, "Fanny was")])
        self.assertEqual(self.ids(DEMO, "Fanny was", "--bos"), next(r["ids"] for r in EXPECTED["greedy"] if r["prompt"] == "Fanny was"))
        self.assertEqual(self.ids(DEMO, BOS), [0])
        self.assertGreater(len(self.ids(DEMO, BOS, "--plain")), 3)
        # The folder has no tokenizer_config.json that would name such a token.
        self.fails(dsv3("tokenize", TOKENIZERS / "deepseek-v2", "--bos"), "beginning-of-sentence")

    def test_rows_of_a_tokenizer_that_adds_a_beginning(self):
        (row, empty) = self.rows(DEMO, [{"text": "Fanny was" + BOS, "more": 1}, {"text": ""}])
        ids = self.ids(DEMO, "Fanny was")
        self.assertEqual(row["ids"], [*ids, 0])
        self.assertEqual(row["with_special"], [0, *ids, 0])
        self.assertEqual((row["decoded"], row["visible"]), ("Fanny was" + BOS, "Fanny was"))
        self.assertEqual(empty, {"ids": [], "plain": [], "decoded": "", "visible": "", "with_special": [0]})

    def test_many_rows(self):
        rows = [{"text": f"row {i}: {'word ' * (i % 30)}"} for i in range(5000)]
        got = self.rows(DEMO, rows)
        self.assertEqual([row["decoded"] for row in got], [row["text"] for row in rows])

    def test_last_row_without_newline(self):
        self.assertEqual(len(self.tokenize(DEMO, '{"text": "a"}\n{"text": "b"}', "--jsonl").splitlines()), 2)
        self.assertEqual(self.tokenize(DEMO, "", "--jsonl"), b"")


def with_tokenizer(case, family):
    """A golden case whose vocabulary is a tokenizer's, as a checkpoint folder: rows of the embedding are repeated."""
    checkpoint = Checkpoint(CASES / case)
    shutil.copy(TOKENIZERS / family / "tokenizer.json", checkpoint.folder)
    tokenizer = json.loads((checkpoint.folder / "tokenizer.json").read_text())
    rows = 1 + max([*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])])
    checkpoint.config["vocab_size"] = rows
    for name, tensor in checkpoint.tensors.items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            _, (old, width), data = tensor
            shuffled = np.frombuffer(data, np.uint8).reshape(old, -1)[np.random.default_rng(1).integers(0, old, rows)]
            tensor[1:] = [rows, width], shuffled.tobytes()
    return checkpoint


class InAModel(Case):
    def test_text_goes_through_a_model(self):
        """What run writes is what the tokens that follow, found one by one, decode to behind the prompt."""
        for case, family in (("qwen3-moe", "qwen3"), ("mixtral", "mixtral")):
            model = packed(with_tokenizer(case, family).write())
            prompt = "Hello, my dog"
            ids = first = json.loads(self.ok(dsv3("tokenize", model, *(["--bos"] if family == "mixtral" else []), stdin=prompt.encode())))
            self.assertEqual(first[:1] == [1], family == "mixtral")
            for _ in range(6):
                out = TEMP / "next.safetensors"
                self.ok(dsv3("dump", model, "--ids", ",".join(map(str, ids)), "--out", out, "--force", "-q"))
                ids = [*ids, int(load_safetensors(out)["logits"][-1].argmax())]
            decode = lambda ids: self.ok(dsv3("tokenize", model, "--decode", stdin=json.dumps(ids).encode())).decode(errors="replace")
            written = self.ok(dsv3("run", model, "-q", "-p", prompt, "-n", 6, "--temp", 0, "--ignore-eos"))
            self.assertEqual(decode(first) + written.decode(errors="replace"), decode(ids), family)

    def test_a_tokenizer_of_another_model(self):
        checkpoint = with_tokenizer("mixtral", "mixtral")
        tokenizer = checkpoint.folder / "tokenizer.json"
        bad = json.loads(tokenizer.read_text())
        bad["decoder"]["decoders"].append({"type": "CTC"})
        tokenizer.write_text(json.dumps(bad))
        self.fails(program("dsv3-convert", checkpoint.write(), TEMP / "bad.dsv3"), "decoder", "CTC", name="dsv3-convert")


class BadInput(Case):
    def test_paths(self):
        self.fails(dsv3("tokenize", TEMP / "absent"), "absent")
        self.fails(dsv3("tokenize", CASES / "ds3-f32"), "tokenizer")
        self.fails(dsv3("tokenize", packed(CASES / "ds3-f32")), "tokenizer")

    def test_broken_tokenizer(self):
        folder = TEMP / "broken"
        folder.mkdir(exist_ok=True)
        good = json.loads((DEMO / "tokenizer.json").read_text())
        other = json.dumps(good | {"model": good["model"] | {"type": "WordPiece"}}).encode()
        for content, part in ((b"{", "tokenizer.json"), (b"[]", "tokenizer.json"), (b"", "tokenizer.json"), (other, "WordPiece")):
            (folder / "tokenizer.json").write_bytes(content)
            self.fails(dsv3("tokenize", folder), part)

    def test_rows(self):
        good = '{"text": "a"}\n'
        for row in ("", "{", "[]", '"a"', "{}", '{"text": 1}', '{"text": null}', '{"text": "\\ud800"}', '{"text": "a"} x', "\xff"):
            with self.subTest(row):
                result = dsv3("tokenize", DEMO, "--jsonl", stdin=(good * 3 + row + "\n" + good).encode("latin-1"))
                self.fails(result, "line 4")

    def test_ids(self):
        for ids, part in ((b"[1, 2", "parse error"), (b"1", "number"), (b"[1, -1]", "-1"), (b"[1, 0.5]", "0.5"), (b"[4096]", "4096"), (b"[1e3]", "1000"),
                          (b"[99999999999]", "99999999999"), (b"", "parse error"), (b"{}", "object")):
            with self.subTest(ids):
                self.fails(dsv3("tokenize", DEMO, "--decode", stdin=ids), part)

    def test_unreadable_standard_input(self):
        for options in ([], ["--jsonl"], ["--decode"]):
            with open("/proc/self/mem", "rb") as unreadable:
                result = subprocess.run([BIN / "dsv3", "tokenize", DEMO, *options], stdin=unreadable, capture_output=True)
            self.fails(result, "standard input")

    def test_usage(self):
        for options in (["--decode", "--jsonl"], ["--decode", "--plain"], ["--jsonl", "--bos"], ["--nope"]):
            self.fails(dsv3("tokenize", DEMO, *options), code=2)


if __name__ == "__main__":
    main()
