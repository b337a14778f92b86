"""Qwen3-MoE and Mixtral in configurations that no golden has, against reference.py: per-layer sizes, windows, YaRN, biases,
FP8 in every matrix."""
import reference
from support import *

BOUND = 1e-4  # of the largest value


def relative(got, want):
    return np.abs(got.astype(np.float64) - want).max() / np.abs(want).max()


def f32(values):
    return ["F32", list(values.shape), values.astype("<f4").tobytes()]


class Grouped(Case):
    def dump(self, folder, ids, *args):
        out = TEMP / "grouped.safetensors"
        self.ok(program("dsv3-convert", folder, TEMP / "grouped.dsv3", "-q", "--force"))
        self.ok(dsv3("dump", TEMP / "grouped.dsv3", "--ids", json.dumps(ids)[1:-1], "--out", out, *args))
        return load_safetensors(out)

    def agrees(self, checkpoint, n=40):
        """dsv3 on the checkpoint computes what the reference does; its logits."""
        ids = np.random.default_rng(n).integers(0, checkpoint.config["vocab_size"], n).tolist()
        want, experts = reference.forward(checkpoint.config, checkpoint.tensors, ids)
        got = self.dump(checkpoint.write(), ids)
        self.assertLess(relative(got["logits"], want), BOUND)
        self.assertEqual({name for name in got if name.startswith("router_ids.")}, {f"router_ids.{i}" for i in experts})
        for i, chosen in experts.items():
            np.testing.assert_array_equal(np.sort(got[f"router_ids.{i}"], 1), chosen)
        return got["logits"]

    def test_the_reference_agrees_with_the_goldens(self):
        for case in ("qwen3-moe", "qwen3-moe-sparse-step", "qwen3-moe-fp8", "mixtral", "mixtral-window"):
            with self.subTest(case):
                checkpoint, want = Checkpoint(CASES / case), load_safetensors(CASES / case / "expected.safetensors")
                logits, experts = reference.forward(checkpoint.config, checkpoint.tensors, want["a/input_ids"])
                self.assertLess(relative(logits, want["a/logits"]), 1e-6)
                for i, chosen in experts.items():
                    np.testing.assert_array_equal(chosen, np.sort(want[f"a/router_ids.{i}"], 1))

    def resized(self, checkpoint, layer, **sizes):
        """Gives a layer sizes of its own, and tensors that fit them."""
        checkpoint.config.setdefault("layer_config", {})[str(layer)] = sizes
        c, rng, p = {**checkpoint.config, **sizes}, np.random.default_rng(layer), f"model.layers.{layer}."
        d, size = c["hidden_size"], c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        queries, keys = c["num_attention_heads"] * size, c["num_key_value_heads"] * size
        shapes = {"self_attn.q_proj.weight": (queries, d), "self_attn.o_proj.weight": (d, queries),
                  "self_attn.k_proj.weight": (keys, d), "self_attn.v_proj.weight": (keys, d)}
        moe, mixtral = p + "mlp.gate.weight" in checkpoint.tensors, c["model_type"] == "mixtral"
        checkpoint.tensors = {n: t for n, t in checkpoint.tensors.items() if not n.startswith((p + "mlp.", p + "block_sparse_moe."))}
        names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        f, width = ("block_sparse_moe.", c["intermediate_size"]) if mixtral else ("mlp.", c["moe_intermediate_size"])
        def add(prefix, width):
            shapes.update({f"{prefix}{n}.weight": (width, d) if n != names[2] else (d, width) for n in names})
        if moe and layer in c.get("mlp_only_layers", []):
            add(f, c["intermediate_size"])
        else:
            experts = c["num_local_experts" if mixtral else "num_experts"]
            shapes[f + "gate.weight"] = (experts, d)
            for e in range(experts):
                add(f"{f}experts.{e}.", width)
        for name, shape in shapes.items():
            checkpoint.tensors[p + name] = f32(rng.standard_normal(shape) / np.sqrt(shape[1]))
        if not mixtral:
            for name in ("q_norm", "k_norm"):
                checkpoint.tensors[f"{p}self_attn.{name}.weight"] = f32(1 + 0.3 * rng.standard_normal(size))

    def test_layer_config(self):
        qwen = Checkpoint(CASES / "qwen3-moe")
        self.resized(qwen, 0, num_attention_heads=4, num_key_value_heads=4, head_dim=8)
        self.resized(qwen, 2, num_attention_heads=3, num_key_value_heads=1, moe_intermediate_size=20, num_experts=5, num_experts_per_tok=2)
        self.resized(qwen, 3, mlp_only_layers=[3], intermediate_size=50)
        self.agrees(qwen)
        # Shown by info, and the cache has each layer's own size.
        info = json.loads(self.ok(dsv3("info", TEMP / "grouped.dsv3", "--json")))
        keys = [(l["kind"], l["num_attention_heads"], l["num_key_value_heads"], l["head_dim"], l["cached_values"]) for l in info["layers"]]
        self.assertEqual(keys, [("moe", 4, 4, 8, 64), ("dense", 6, 2, 20, 80), ("moe", 3, 1, 20, 40), ("dense", 6, 2, 20, 80)])
        shown = self.ok(dsv3("info", TEMP / "grouped.dsv3")).decode()
        self.assertIn("264 values", shown)
        self.assertIn("layer_config", shown)
        row = next(line.split() for line in shown[shown.index("\nLayers"):].splitlines() if line.split()[:2] == ["2", "moe"])
        self.assertEqual(row[:9], ["2", "moe", "3", "1", "20", "5", "2", "0", "20"])

        mixtral = Checkpoint(CASES / "mixtral")
        self.resized(mixtral, 1, num_attention_heads=8, num_key_value_heads=8, intermediate_size=24, num_local_experts=3, num_experts_per_tok=1)
        self.agrees(mixtral)

    def test_layer_config_that_does_not_fit_the_tensors(self):
        for sizes, name in (({"num_attention_heads": 4}, "q_proj"), ({"head_dim": 22}, "q_norm"), ({"num_experts": 5}, "gate.weight"),
                            ({"moe_intermediate_size": 8}, "gate_proj"), ({"mlp_only_layers": [2]}, "mlp.gate_proj")):
            with self.subTest(sizes):
                checkpoint = Checkpoint(CASES / "qwen3-moe")
                checkpoint.config["layer_config"] = {"2": sizes}
                self.fails(program("dsv3-convert", checkpoint.write(), TEMP / "bad.dsv3", "-q"), "model.layers.2", name, name="dsv3-convert")
                self.assertEqual(list(TEMP.glob("bad.dsv3*")), [])

    def test_windows(self):
        """From a token that sees only itself to windows longer than the text, also in Qwen3-MoE when it asks for one."""
        logits = {}
        for window in (1, 2, 39, 40, 41, 100000, None):
            with self.subTest(window):
                checkpoint = Checkpoint(CASES / "mixtral-window")
                checkpoint.config["sliding_window"] = window
                logits[window] = self.agrees(checkpoint)
        for window in (40, 41, 100000):
            self.assertTrue((logits[window] == logits[None]).all())
        self.assertFalse((logits[39] == logits[None]).all())
        self.assertTrue((logits[39][:39] == logits[None][:39]).all())
        for asked in (True, False):
            checkpoint = Checkpoint(CASES / "qwen3-moe")
            checkpoint.config |= {"use_sliding_window": asked, "sliding_window": 7}
            self.agrees(checkpoint)

    def test_a_window_is_as_far_as_a_layer_sees(self):
        checkpoint = Checkpoint(CASES / "mixtral-window")
        checkpoint.config["sliding_window"] = window = 70  # more than a block of cached rows
        folder, layers, rng = checkpoint.write(), checkpoint.config["num_hidden_layers"], np.random.default_rng(5)
        ids = rng.integers(0, 200, 200).tolist()
        first = self.dump(folder, ids, "--chunk", 33)["logits"]
        for chunk in (1, 64, 200):
            self.assertTrue((self.dump(folder, ids, "--chunk", chunk)["logits"] == first).all())
        other = self.dump(folder, [(ids[0] + 1) % 200] + ids[1:])["logits"]
        reach = layers * (window - 1)
        self.assertTrue((other[reach + 1:] == first[reach + 1:]).all())
        self.assertFalse((other[:reach + 1] == first[:reach + 1]).all(1).any())

    def test_yarn_and_biases(self):
        for scaling in ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
                        {"type": "yarn", "factor": 2.5, "original_max_position_embeddings": 32, "beta_fast": 16, "beta_slow": 2}):
            checkpoint, rng = Checkpoint(CASES / "qwen3-moe"), np.random.default_rng(8)
            checkpoint.config |= {"rope_scaling": scaling, "attention_bias": True}
            for i in range(4):
                for name in "qkvo":
                    rows = checkpoint.tensors[f"model.layers.{i}.self_attn.{name}_proj.weight"][1][0]
                    checkpoint.tensors[f"model.layers.{i}.self_attn.{name}_proj.bias"] = f32(0.3 * rng.standard_normal(rows))
            self.agrees(checkpoint)

    def test_fp8_in_every_matrix(self):
        """Embedding, router and head, too, with scales of every type."""
        for case in ("qwen3-moe", "mixtral"):
            for scale_dtype in ("F32", "BF16", "F16"):
                with self.subTest(case, scales=scale_dtype):
                    checkpoint, rng = Checkpoint(CASES / case), np.random.default_rng(9)
                    for name in list(checkpoint.tensors):
                        shape = checkpoint.tensors[name][1]
                        if len(shape) != 2:
                            continue
                        codes = rng.integers(0, 127, shape).astype(np.uint8) | (rng.integers(0, 2, shape) << 7).astype(np.uint8)
                        spread = 1 if name == "model.embed_tokens.weight" else np.sqrt(shape[1])
                        scales = (1 + rng.random((-(-shape[0] // 128), -(-shape[1] // 128)))) / 150 / spread
                        raw = {"F32": scales.astype("<f4"), "F16": scales.astype("<f2"),
                               "BF16": (scales.astype("<f4").view("<u4") >> 16).astype("<u2")}[scale_dtype]
                        checkpoint.tensors[name] = ["F8_E4M3", shape, codes.tobytes()]
                        checkpoint.tensors[name + "_scale_inv"] = [scale_dtype, list(scales.shape), raw.tobytes()]
                    self.agrees(checkpoint)

    def test_both_namings_of_mixtral(self):
        checkpoint, names = Checkpoint(CASES / "mixtral"), {".w1.": ".gate_proj.", ".w2.": ".down_proj.", ".w3.": ".up_proj."}
        ids = [3, 1, 4, 1, 5, 9, 2, 6]
        want = self.dump(CASES / "mixtral", ids)
        renamed = {}
        for name, tensor in checkpoint.tensors.items():
            for old, new in {"block_sparse_moe": "mlp", **names}.items():
                name = name.replace(old, new)
            renamed[name] = tensor
        self.assertNotEqual(set(renamed), set(checkpoint.tensors))
        checkpoint.tensors = renamed
        got = self.dump(checkpoint.write(), ids)
        for name, values in want.items():
            np.testing.assert_array_equal(got[name], values, name)


if __name__ == "__main__":
    main()
