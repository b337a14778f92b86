"""Heads other than the next token's, the single layer, and router statistics, against the goldens."""
import xml.etree.ElementTree

from support import *

BOUND = 1e-4  # of the largest value


def relative(got, want):
    return np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()


class HeadCase(Case):
    def rows(self, case):
        want = load_safetensors(CASES / case / "expected.safetensors")
        path = TEMP / "rows.json"
        path.write_text(json.dumps({"input_ids": want["input_ids"].tolist(), "attention_mask": want["attention_mask"].tolist()}))
        return want, path

    def lines(self, *args, **options):
        return [json.loads(line) for line in self.ok(dsv3(*args, "--json", "--exact", **options)).splitlines()]


class Heads(HeadCase):
    def test_classify_padded_and_alone(self):
        want, path = self.rows("qwen3-moe-classify")
        model = packed(CASES / "qwen3-moe-classify")
        got = self.lines("classify", model, "--ids", path)
        self.assertLess(relative([row["logits"] for row in got], want["logits"]), BOUND)
        for row, ids, mask in zip(got, want["input_ids"], want["attention_mask"]):
            self.assertEqual(row["label"], ["low", "middle", "high"][int(np.argmax(row["logits"]))])
            self.assertAlmostEqual(sum(row["scores"].values()), 1)
            path.write_text(json.dumps(ids[mask == 1].tolist()))
            self.assertEqual(self.lines("classify", model, "--ids", path)[0]["logits"], row["logits"])

    def test_rightmost_token_that_is_not_padding(self):
        model, path = packed(CASES / "qwen3-moe-classify"), TEMP / "rows.json"
        logits = []
        for ids in ([7, 9, 4, 11], [7, 9, 4, 11, 4, 4], [4, 4, 4], [4]):  # 4 is pad_token_id
            path.write_text(json.dumps(ids))
            logits.append(self.lines("classify", model, "--ids", path)[0]["logits"])
        self.assertEqual(logits[0], logits[1])
        self.assertEqual(logits[2], logits[3])

    def test_not_finite(self):
        """Weights that overflow give no answer."""
        path = TEMP / "rows.json"
        path.write_text("[[7, 9], [8]]")
        for command, case, part in (("classify", "qwen3-moe-classify", "score"), ("tag", "qwen3-moe-tag", "score"), ("answer", "qwen3-moe-answer", "qa_outputs"),
                                    ("routing", "qwen3-moe", "mlp.gate.weight")):
            checkpoint = Checkpoint(CASES / case)
            name = next(name for name in checkpoint.tensors if part in name and name.endswith("weight"))
            dtype, shape, data = checkpoint.tensors[name]
            huge = np.full(shape, 0x7F60, "<u2") if dtype == "BF16" else np.full(shape, 3e38, "<f4")
            checkpoint.tensors[name] = [dtype, shape, huge.tobytes()]
            self.fails(dsv3(command, packed(checkpoint.write()), "--ids", path), "row 0: token", "not finite")

    def test_the_mask_says_what_is_read(self):
        """Also where a pad_token_id would not."""
        checkpoint, path = Checkpoint(CASES / "qwen3-moe-classify"), TEMP / "rows.json"
        del checkpoint.config["pad_token_id"]
        for model in (packed(checkpoint.write()), packed(CASES / "qwen3-moe-classify")):
            path.write_text(json.dumps([7, 9, 11]))
            want = self.lines("classify", model, "--ids", path)
            path.write_text(json.dumps({"input_ids": [7, 9, 11, 5], "attention_mask": [1, 1, 1, 0]}))
            self.assertEqual(self.lines("classify", model, "--ids", path), want)

    def test_all_rows_are_checked_first(self):
        path = TEMP / "rows.json"
        path.write_text(json.dumps([[7, 9], [8, 280]]))
        for command, case in (("classify", "qwen3-moe-classify"), ("tag", "qwen3-moe-tag"), ("answer", "qwen3-moe-answer"), ("routing", "qwen3-moe")):
            result = dsv3(command, packed(CASES / case), "--ids", path)
            self.fails(result, path, "row 1", "item 1", "280", "expected a token id in 0..")
            self.assertEqual(result.stdout, b"")

    def test_without_a_pad_token(self):
        checkpoint = Checkpoint(CASES / "qwen3-moe-classify")
        del checkpoint.config["pad_token_id"]
        model, path = packed(checkpoint.write()), TEMP / "rows.json"
        path.write_text(json.dumps([[7, 9, 4], [7, 9, 5]]))
        self.fails(dsv3("classify", model, "--ids", path), "no pad_token_id")
        path.write_text(json.dumps([7, 9, 4]))
        self.lines("classify", model, "--ids", path)  # the last position, padding or not

    def test_tag(self):
        want, path = self.rows("qwen3-moe-tag")
        got = self.lines("tag", packed(CASES / "qwen3-moe-tag"), "--ids", path)
        for row, logits, mask in zip(got, want["logits"], want["attention_mask"]):
            self.assertEqual(len(row), mask.sum())
            self.assertLess(relative([token["logits"] for token in row], logits[mask == 1]), BOUND)
            self.assertEqual({token["label"] for token in row} - {"low", "middle", "high"}, set())

    def test_answer_with_both_prefixes(self):
        want, path = self.rows("qwen3-moe-answer")
        checkpoint = Checkpoint(CASES / "qwen3-moe-answer")
        checkpoint.tensors = {name.replace("transformer.", "model."): t for name, t in checkpoint.tensors.items()}
        for model in (packed(CASES / "qwen3-moe-answer"), packed(checkpoint.write())):
            for i, row in enumerate(self.lines("answer", model, "--ids", path)):
                real = want["attention_mask"][i] == 1
                self.assertLess(relative(row["start_logits"], want["start_logits"][i][real]), BOUND)
                self.assertLess(relative(row["end_logits"], want["end_logits"][i][real]), BOUND)
                self.assertLessEqual(row["first_token"], row["last_token"])

    def test_padding_before_the_tokens(self):
        """As after them: what is not a token changes nothing."""
        path, ids = TEMP / "rows.json", [7, 9, 11, 3]
        for command, case in (("classify", "qwen3-moe-classify"), ("tag", "qwen3-moe-tag"), ("answer", "qwen3-moe-answer")):
            results = []
            for row, mask in ((ids, [1] * 4), ([4, 4] + ids, [0, 0, 1, 1, 1, 1]), (ids + [4], [1] * 4 + [0]), ([4] + ids + [4, 4], [0, 1, 1, 1, 1, 0, 0])):
                path.write_text(json.dumps({"input_ids": [row, ids], "attention_mask": [mask, [1] * 4]}))
                results.append(self.lines(command, packed(CASES / case), "--ids", path))
                before = mask.index(1)  # places are those of the row given
                if command == "tag":
                    self.assertEqual([token.pop("token") for token in results[-1][0]], list(range(before, before + 4)))
                    self.assertEqual([token.pop("token") for token in results[-1][1]], list(range(4)))
                if command == "answer":
                    self.assertEqual(results[-1][0].pop("padding_before"), before)
                    self.assertEqual(results[-1][1].pop("padding_before"), 0)
                    for place in ("first_token", "last_token"):
                        results[-1][0][place] -= before
            self.assertEqual(len(results[0]), 2)
            self.assertEqual(results[0][0], results[0][1])
            for other in results[1:]:
                self.assertEqual(other, results[0], command)

    def test_bad_rows(self):
        path = TEMP / "rows.json"
        for command, case in (("classify", "qwen3-moe-classify"), ("tag", "qwen3-moe-tag"), ("answer", "qwen3-moe-answer"), ("routing", "qwen3-moe")):
            for rows, *parts in (([], "list"), ({}, "list"), ([[]], "no tokens"), ([[1], 2], "number"), ([1, "a"], '"a"'), ([1, 280], "280"), ([-1], "-1"),
                                 ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "row 0", "not as long"),
                                 ({"input_ids": [[1, 2], [3]], "attention_mask": [[1, 1]]}, "as many rows"),
                                 ({"input_ids": [[1, 2]], "attention_mask": 1}, "as many rows"),
                                 ({"input_ids": [[1, 2]], "attention_mask": [1]}, "row 0", "not as long"),
                                 ({"input_ids": [1, 2], "attention_mask": [1, 2]}, "item 1", "expected 0 or 1"),
                                 ({"input_ids": [1, 2], "attention_mask": [1, "1"]}, "item 1", "expected 0 or 1"),
                                 ({"input_ids": [[1], [1, 2]], "attention_mask": [[1], [0, 0]]}, "row 1", "no token"),
                                 ({"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]}, "item 1", "between tokens")):
                with self.subTest(command, rows=rows):
                    path.write_text(json.dumps(rows))
                    self.fails(dsv3(command, packed(CASES / case), "--ids", path), *parts)
        self.fails(dsv3("answer", packed(CASES / "qwen3-moe-answer"), "-p", "x"), "--question")
        self.fails(dsv3("tag", packed(CASES / "qwen3-moe-tag"), "-p", "x"), "tokenizer")
        self.fails(dsv3("tag", packed(CASES / "qwen3-moe-tag"), "--ids", TEMP / "absent.json"), "absent.json")

    def with_tokenizer(self, case, source=DEMO):
        """The case with a tokenizer, the demo model's, and an embedding of its size."""
        checkpoint = Checkpoint(CASES / case)
        for file in source.glob("tokenizer*.json"):
            shutil.copy(file, checkpoint.folder)
        checkpoint.config["vocab_size"] = 4096
        name = next(name for name in checkpoint.tensors if name.endswith("embed_tokens.weight"))
        values = np.random.default_rng(1).standard_normal((4096, checkpoint.config["hidden_size"])).astype("<f4")
        checkpoint.tensors[name] = ["F32", list(values.shape), values.tobytes()]
        return packed(checkpoint.write())

    def test_text(self):
        """Text in gives what its ids give, with places in the text; what is shown without --json says the same."""
        text, path = "Mr. Bennet's café \N{SNOWMAN} was very\nold.", TEMP / "rows.json"
        model = self.with_tokenizer("qwen3-moe-tag")
        ids = json.loads(self.ok(dsv3("tokenize", model, "--plain", stdin=text.encode())))
        path.write_text(json.dumps(ids))
        (tagged,), (plain,) = self.lines("tag", model, "-p", text), self.lines("tag", model, "--ids", path)
        offset = len(tagged) - len(ids)  # a token that the tokenizer puts in front
        self.assertIn(offset, (0, 1))
        if offset == 0:
            self.assertEqual([t["logits"] for t in tagged], [t["logits"] for t in plain])
        self.assertEqual([t["id"] for t in tagged[offset:]], ids)
        self.assertEqual((tagged[offset]["start"], tagged[-1]["end"]), (0, len(text)))
        for token, following in zip(tagged[offset:], tagged[offset + 1:]):
            self.assertLessEqual(token["start"], token["end"])
            if "\N{REPLACEMENT CHARACTER}" not in token["text"]:
                self.assertEqual(text[token["start"]:token["end"]], token["text"])
        shown = self.ok(dsv3("tag", model, "-p", text, "--exact")).decode().splitlines()
        self.assertEqual([[json.loads(line.split("\t")[0]), line.split("\t")[1]] for line in shown], [[t["text"], t["label"]] for t in tagged])

        model = self.with_tokenizer("qwen3-moe-classify")
        (got,) = self.lines("classify", model, "-p", text)
        label, score = self.ok(dsv3("classify", model, "-p", text, "--exact")).decode().split()
        self.assertEqual((label, f"{got['score']:.6g}"), (got["label"], f"{float(score):.6g}"))
        self.assertEqual(self.lines("classify", model, stdin=text.encode()), [got])

        model = self.with_tokenizer("qwen3-moe-answer")
        for longest in (1, 3, 30):
            (got,) = self.lines("answer", model, "-q", "Who was old?", "-p", text, "--max-tokens", longest, "--exact")
            self.assertLess(got["last_token"] - got["first_token"], longest)
            self.assertGreaterEqual(got["first_token"], 0)
            self.assertEqual(text[got["start"]:got["end"]], got["answer"])
            shown = self.ok(dsv3("answer", model, "-q", "Who was old?", "-p", text, "--max-tokens", longest, "--exact")).decode()
            self.assertEqual(shown, got["answer"] + "\n")
        # The best of all spans in the context, by the product of both probabilities.
        first = len(got["start_logits"]) - len(ids)
        start, end = (np.exp(np.array(got[k]) - max(got[k])) / np.exp(np.array(got[k]) - max(got[k])).sum() for k in ("start_logits", "end_logits"))
        spans = {(i, j): start[i] * end[j] for i in range(first, len(start)) for j in range(i, min(len(start), i + 30))}
        self.assertEqual(max(spans, key=spans.get), (got["first_token"] + first, got["last_token"] + first))
        self.assertAlmostEqual(max(spans.values()), got["score"])

    def test_places_in_the_given_text(self):
        """Not in what the tokenizer makes of it: NFC, a space in front. Offsets of Hugging Face tokenizers 0.23.3, but for "e\u0301",
        of which it gives the "e" alone."""
        for name, text, offsets in (("qwen3", "cafe\u0301 noir x", [(0, 2), (2, 3), (3, 5), (5, 7), (7, 8), (8, 10), (10, 11), (11, 12)]),
                                    ("mixtral", "Mr. Bennet", [(0, 1), (1, 2), (2, 3), (3, 7), (7, 8), (8, 10)]),
                                    ("mixtral", "cafe\u0301 noir", [(0, 1), (0, 2), (2, 3), (3, 4), (4, 5), (4, 5), (5, 7), (7, 8), (8, 10)])):
            (tokens,) = self.lines("tag", self.with_tokenizer("qwen3-moe-tag", TOKENIZERS / name), "-p", text)
            places, bos = [(t["start"], t["end"]) for t in tokens], int(name == "mixtral")
            self.assertEqual(places, [(0, 0)] * bos + offsets)
            (got,) = self.lines("answer", self.with_tokenizer("qwen3-moe-answer", TOKENIZERS / name), "-q", "Who?", "-p", text)
            self.assertEqual((got["start"], got["end"]), (offsets[got["first_token"]][0], offsets[got["last_token"]][1]))
            self.assertEqual(got["answer"], text[got["start"]:got["end"]])

    def test_no_text(self):
        model = self.with_tokenizer("qwen3-moe-answer")
        self.fails(dsv3("answer", model, "-q", "Who?", "-p", ""), "the text has no tokens")

    def test_the_wrong_head(self):
        model = packed(CASES / "qwen3-moe-tag")
        self.fails(dsv3("classify", model, "--ids", TEMP / "rows.json"), "no sequence classification head")
        self.fails(dsv3("layer", model, "--in", "x", "--out", "y"), "expected a single layer")


class Layer(Case):
    def test_masks(self):
        case = CASES / "moe-transformer"
        want, out = load_safetensors(case / "expected.safetensors"), TEMP / "layer.safetensors"
        for name, mask, device in ((n, m, d) for n, m in (("none", "none"), ("causal", "causal"), ("float", "float_mask"))
                                   for d in (["--exact"], ["--backend", "ref"], ["--isa", "portable", "--exact"])):
            with self.subTest(name, device=device):
                self.ok(dsv3("layer", packed(case), "--in", case / "expected.safetensors", "--out", out, "--mask", mask, *device))
                got = load_safetensors(out)
                self.assertLess(relative(got["output"], want[f"output.{name}"]), BOUND)
                self.assertTrue((np.sort(got["router_ids"], 1) == np.sort(want[f"router_ids.{name}"], 1)).all())
                self.assertLess(relative(np.sort(got["router_weights"], 1), np.sort(want[f"router_weights.{name}"], 1)), BOUND)

    def run_layer(self, tensors, *args):
        path, out = TEMP / "in.safetensors", TEMP / "layer.safetensors"
        header, data = {}, b""
        for name, (dtype, values) in tensors.items():
            raw = values.tobytes()
            header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
            data += raw
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        self.ok(dsv3("layer", packed(CASES / "moe-transformer"), "--in", path, "--out", out, "--exact", *args))
        return load_safetensors(out)

    def test_every_kind_of_mask_and_every_batch(self):
        want = load_safetensors(CASES / "moe-transformer/expected.safetensors")
        x, n = want["input"], want["input"].shape[1]
        blocked = np.triu(np.ones((n, n), np.uint8), 1)
        for name, kind, mask in (("bool", "BOOL", blocked), ("u8", "U8", 7 * blocked), ("f32", "F32", np.where(blocked, -np.inf, 0).astype("<f4"))):
            got = self.run_layer({"input": ("F32", x), name: (kind, mask)}, "--mask", name)
            self.assertLess(relative(got["output"], want["output.causal"]), BOUND)
        together = self.run_layer({"input": ("F32", x)})
        alone = [self.run_layer({"input": ("F32", np.ascontiguousarray(row[None]))}, "-t", 1) for row in x]
        self.assertTrue((together["output"] == np.concatenate([a["output"] for a in alone])).all())
        self.assertTrue((together["router_ids"] == np.concatenate([a["router_ids"] for a in alone])).all())
        # A token that sees nothing has no output; any other that is not finite is a failure.
        nothing = np.zeros((n, n), np.uint8)
        nothing[3] = 1
        blind = self.run_layer({"input": ("F32", x), "m": ("BOOL", nothing)}, "--mask", "m")["output"]
        self.assertEqual(np.isfinite(blind).all(2).all(0).tolist(), [i != 3 for i in range(n)])
        huge = x.copy()
        huge[1, 2] = 3e38
        with self.assertRaisesRegex(AssertionError, "row 1: token.*not finite"):
            self.run_layer({"input": ("F32", huge)})
        # Causal: a token's result does not depend on later ones, so a shorter sequence gives the same.
        causal, short = self.run_layer({"input": ("F32", x)}, "--mask", "causal"), self.run_layer({"input": ("F32", np.ascontiguousarray(x[:, :5]))}, "--mask", "causal")
        self.assertTrue((causal["output"][:, :5] == short["output"]).all())

    def test_bad_input(self):
        case = CASES / "moe-transformer"
        model, out = packed(case), TEMP / "layer.safetensors"
        self.fails(dsv3("layer", model, "--in", case / "config.json", "--out", out), "config.json")
        self.fails(dsv3("layer", model, "--in", case / "expected.safetensors", "--out", out, "--mask", "output.none"), "expected [23, 23]")
        self.fails(dsv3("layer", model, "--in", case / "expected.safetensors", "--out", out, "--mask", "nothing"), "no such tensor")
        self.fails(dsv3("dump", model, "--ids", "1", "--out", out), "")
        for absent, why in ((TEMP / "absent", "No such file"), (TEMP, "not a regular file")):
            self.fails(dsv3("layer", model, "--in", absent, "--out", out), absent, why)

    def test_refused_before_the_work(self):
        case = CASES / "moe-transformer"
        given, out = TEMP / "same.safetensors", TEMP / "mine.txt"
        shutil.copy(case / "expected.safetensors", given)
        before = given.read_bytes()
        self.fails(dsv3("layer", packed(case), "--in", given, "--out", given), "--out is the file of --in")
        self.assertEqual(given.read_bytes(), before)
        out.write_text("mine, and no tensors")
        self.fails(dsv3("layer", packed(case), "--in", TEMP / "absent", "--out", out), out, "not a safetensors file")

    def test_masks_and_lengths_that_make_no_sense(self):
        x = load_safetensors(CASES / "moe-transformer/expected.safetensors")["input"]
        n = x.shape[1]
        for value in (np.nan, np.inf):
            mask = np.zeros((n, n), "<f4")
            mask[0, 2] = value
            with self.assertRaisesRegex(AssertionError, '"m": element 2: got'):
                self.run_layer({"input": ("F32", x), "m": ("F32", mask)}, "--mask", "m")
        square = np.zeros((n, n))
        for name, kind, tensors in (("input", "I64", {"input": ("I64", x.astype("<i8") * 0)}), ("input", "BOOL", {"input": ("BOOL", x.astype("u1"))}),
                                    ("m", "I64", {"input": ("F32", x), "m": ("I64", square.astype("<i8"))})):
            with self.assertRaisesRegex(AssertionError, f'"{name}": got type {kind}, expected F32'):
                self.run_layer(tensors, *(["--mask", "m"] if "m" in tensors else []))
        with self.assertRaisesRegex(AssertionError, "length of at most 32768"):
            self.run_layer({"input": ("F32", np.zeros((1, 40000, x.shape[2]), "<f4"))}, "--mask", "causal")

    def test_bad_tensor_files(self):
        model, path = packed(CASES / "moe-transformer"), TEMP / "bad.safetensors"
        good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

        def bad(header, *parts, data=bytes(8), size=None):
            text = header if isinstance(header, bytes) else json.dumps(header).encode()
            path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)
            self.fails(dsv3("layer", model, "--in", path, "--out", TEMP / "y"), path, *parts)

        for header, *parts in ((b"{", "parse error"), (b"[]", "no JSON object"), ({}, "no such tensor"), ({"input": 3}, '"input"', "number, expected an object"),
                               (b'{"input": {}, "input": {}}', "twice"), (b"\xff\xfe", "bad.safetensors")):
            bad(header, *parts)
        for change, *parts in (({"dtype": 3}, "got type number"), ({"dtype": "F16"}, "got type F16"), ({"shape": "x"}, "shape", "got string, expected a list"),
                               ({"shape": [2.0]}, "shape", "item 0", "2.0"), ({"shape": [-2]}, "-2"), ({"shape": [True]}, "true"), ({"shape": [2, 0]}, "[2, 0]"),
                               ({"shape": [2 ** 63]}, "9223372036854775808"), ({"shape": [2 ** 62, 2]}, "[4611686018427387904, 2]"),
                               ({"shape": [2 ** 61]}, "[0, 8]"), ({"shape": [3]}, "[0, 8]", "[3]"), ({"data_offsets": [0, 8, 8]}, "[0, 8, 8]"),
                               ({"data_offsets": [8, 0]}, "[8, 0]"), ({"data_offsets": [4, 12]}, "[4, 12]"), ({"data_offsets": [-1, 7]}, "item 0", "-1"),
                               ({"data_offsets": None}, "got null"), ({"dtype": "I64", "shape": [1]}, "got 16777216, expected 0..2^24")):
            with self.subTest(change):
                bad({"input": {**good, **change}}, '"input"', *parts, data=struct.pack("<q", 1 << 24))
        for size in (0, 10 ** 6, 2 ** 63, 2 ** 64 - 1):
            bad({"input": good}, "not a safetensors file", size=size)
        path.write_bytes(b"1234567")
        self.fails(dsv3("layer", model, "--in", path, "--out", TEMP / "y"), "not a safetensors file")


class Routing(Case):
    def loss(self, layers, chosen, mask):
        """The formula of Switch Transformers, over all rows of all layers."""
        logits = np.concatenate([layer[mask == 1] for layer in layers]).astype(np.float64)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        share = np.bincount(np.argsort(-logits, 1, "stable")[:, :chosen].ravel(), minlength=p.shape[1]) / len(p)
        return p.shape[1] * (share * p.mean(0)).sum()

    def test_formula_against_the_golden(self):
        want = load_safetensors(CASES / "load-balancing/expected.safetensors")
        layers = [want[f"router_logits.{i}"] for i in range(3)]
        mask = want["attention_mask"].ravel()
        self.assertAlmostEqual(self.loss(layers, 3, np.ones(80)) / want["loss"][0], 1, delta=1e-6)
        self.assertAlmostEqual(self.loss(layers, 3, mask) / want["loss_masked"][0], 1, delta=1e-6)

    def test_statistics(self):
        model, path, trace, svg = packed(CASES / "qwen3-moe"), TEMP / "ids.json", TEMP / "t.safetensors", TEMP / "load.svg"
        rows = np.random.default_rng(3).integers(0, 280, (2, 30))
        mask = np.ones((2, 30), int)
        mask[1, 20:] = 0
        path.write_text(json.dumps({"input_ids": rows.tolist(), "attention_mask": mask.tolist()}))
        got = json.loads(self.ok(dsv3("routing", model, "--ids", path, "--format", "json", "--trace", trace, "--svg", svg)))
        traced = load_safetensors(trace)
        self.assertEqual((got["tokens"], [layer["layer"] for layer in got["layers"]]), (50, [0, 2, 3]))
        self.assertTrue((traced["input_ids"] == rows.ravel()).all() and (traced["mask"] == mask.ravel()).all())
        self.assertTrue((traced["row"] == np.repeat([0, 1], 30)).all() and (traced["token"] == np.tile(np.arange(30), 2)).all())
        flat = mask.ravel()
        for layer in got["layers"]:
            ids, logits = traced[f"router_ids.{layer['layer']}"], traced[f"router_logits.{layer['layer']}"]
            load = np.bincount(ids[flat == 1].ravel(), minlength=16)
            self.assertEqual(layer["load"], load.tolist())
            self.assertAlmostEqual(layer["loss"] / self.loss([logits], 4, flat), 1, delta=1e-6)
            share = load[load > 0] / load.sum()
            self.assertAlmostEqual(layer["entropy_bits"], -(share * np.log2(share)).sum(), 6)
            self.assertAlmostEqual(layer["max_over_mean"], load.max() / load.mean(), 6)
        whole = self.loss([traced[f"router_logits.{i}"] for i in (0, 2, 3)], 4, flat)
        self.assertAlmostEqual(got["loss"] / whole, 1, delta=1e-6)
        cells = [e for e in xml.etree.ElementTree.parse(svg).iter() if e.tag.endswith("rect")]
        self.assertEqual(len(cells), 1 + 3 * 16)
        csv = self.ok(dsv3("routing", model, "--ids", path, "--format", "csv")).decode().splitlines()
        self.assertEqual((csv[0], len(csv)), ("layer,expert,tokens", 1 + 3 * 16))
        self.assertEqual([int(line.split(",")[2]) for line in csv[1:]], [load for layer in got["layers"] for load in layer["load"]])
        shown = self.ok(dsv3("routing", model, "--ids", path)).decode().splitlines()
        self.assertTrue(shown[0].startswith("50 tokens; load-balancing loss"), shown[0])
        self.assertEqual([line.split()[0] for line in shown[2:]], ["0", "2", "3"])
        for e in xml.etree.ElementTree.parse(svg).iter():
            if e.tag.endswith("title"):  # "layer 0, expert 3: 17 tokens"
                layer, expert, load = (int(word) for word in e.text.replace(",", " ").replace(":", " ").split() if word.isdigit())
                self.assertEqual(next(l for l in got["layers"] if l["layer"] == layer)["load"][expert], load)

    def test_masked_tokens_do_not_count(self):
        model, path = packed(CASES / "mixtral"), TEMP / "ids.json"
        rows = np.random.default_rng(4).integers(0, 200, (2, 12)).tolist()
        def statistics(given):
            path.write_text(json.dumps(given))
            return json.loads(self.ok(dsv3("routing", model, "--ids", path, "--format", "json")))
        want = statistics(rows)
        padded = statistics({"input_ids": [rows[0] + [9] * 5, [9] * 3 + rows[1]], "attention_mask": [[1] * 12 + [0] * 5, [0] * 3 + [1] * 12]})
        for got, expected in zip(padded["layers"], want["layers"]):
            self.assertEqual(got["load"], expected["load"])
            self.assertAlmostEqual(got["loss"] / expected["loss"], 1, delta=1e-6)
        self.assertAlmostEqual(padded["loss"] / want["loss"], 1, delta=1e-6)
        path.write_text(json.dumps({"input_ids": [1, 2], "attention_mask": [0, 0]}))
        self.fails(dsv3("routing", model, "--ids", path), "no token")
        path.write_text("[1]")
        self.fails(dsv3("routing", packed(CASES / "moe-transformer"), "--ids", path), "")
        self.fails(dsv3("routing", model, "--ids", path, "--svg", TEMP / "absent/x.svg"), "absent")
        fifo, partial, trace = TEMP / "fifo", TEMP / "load.svg.partial", TEMP / "early.safetensors"
        os.mkfifo(fifo)
        self.fails(dsv3("routing", model, "--ids", path, "--svg", fifo), fifo, "not a regular file")
        partial.write_text("mine")
        self.fails(dsv3("routing", model, "--ids", path, "--svg", TEMP / "load.svg", "--trace", trace), partial, "it exists")
        self.assertEqual((partial.read_text(), trace.exists()), ("mine", False))
        partial.unlink()
        self.fails(dsv3("routing", model, "--ids", path, "--svg", trace, "--trace", trace), "the same file")
        self.fails(dsv3("routing", TEMP / "absent.model", "--ids", path, "--svg", TEMP / "absent/x.svg"), "absent/x.svg")
        precious = TEMP / "precious.json"
        precious.write_text("mine")
        self.fails(dsv3("routing", model, "--ids", path, "--svg", precious), "not a picture")
        self.assertEqual(precious.read_text(), "mine")
        self.fails(dsv3("routing", model, "--ids", path, "--trace", TEMP / "absent/x.safetensors"), "absent")


if __name__ == "__main__":
    main()
