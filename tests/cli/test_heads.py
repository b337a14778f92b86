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

    def lines(self, *args):
        return [json.loads(line) for line in self.ok(dsv3(*args, "--json")).splitlines()]


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

    def test_the_wrong_head(self):
        model = packed(CASES / "qwen3-moe-tag")
        self.fails(dsv3("classify", model, "--ids", TEMP / "rows.json"), "no sequence classification head")
        self.fails(dsv3("layer", model, "--in", "x", "--out", "y"), "expected a single layer")


class Layer(Case):
    def test_masks(self):
        case = CASES / "moe-transformer"
        want, out = load_safetensors(case / "expected.safetensors"), TEMP / "layer.safetensors"
        for name, mask in (("none", "none"), ("causal", "causal"), ("float", "float_mask")):
            with self.subTest(name):
                self.ok(dsv3("layer", packed(case), "--in", case / "expected.safetensors", "--out", out, "--mask", mask))
                got = load_safetensors(out)
                self.assertLess(relative(got["output"], want[f"output.{name}"]), BOUND)
                self.assertTrue((np.sort(got["router_ids"], 1) == np.sort(want[f"router_ids.{name}"], 1)).all())
                self.assertLess(relative(np.sort(got["router_weights"], 1), np.sort(want[f"router_weights.{name}"], 1)), BOUND)

    def test_bad_input(self):
        case = CASES / "moe-transformer"
        model, out = packed(case), TEMP / "layer.safetensors"
        self.fails(dsv3("layer", model, "--in", case / "config.json", "--out", out), "config.json")
        self.fails(dsv3("layer", model, "--in", case / "expected.safetensors", "--out", out, "--mask", "output.none"), "expected [23, 23]")
        self.fails(dsv3("layer", model, "--in", case / "expected.safetensors", "--out", out, "--mask", "nothing"), "no such tensor")
        self.fails(dsv3("dump", model, "--ids", "1", "--out", out), "")


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


if __name__ == "__main__":
    main()
