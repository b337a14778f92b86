"""dsv3-convert on checkpoints that are wrong in one place: one clear message, exit 1, nothing left behind."""
from support import *


class Convert(Case):
    def convert(self, folder, *args, **options):
        self.out = TEMP / "out.dsv3"
        return program("dsv3-convert", folder, self.out, *args, **options)

    def bad(self, folder, *parts, **options):
        result = self.convert(folder, "-q", **options)
        self.fails(result, *parts, name="dsv3-convert")
        self.assertEqual(list(TEMP.glob("out.dsv3*")), [])

    def test_good(self):
        result = self.convert(DEMO)
        self.assertEqual(self.ok(result), b"")
        first = self.out.read_bytes()
        self.out.unlink()
        self.assertEqual(self.ok(self.convert(DEMO, "-q")), b"")
        self.assertTrue(self.out.read_bytes() == first)
        # Not over what is there, unless it is said.
        self.fails(self.convert(DEMO, "-q"), "out.dsv3", "--force", name="dsv3-convert")
        self.ok(self.convert(DEMO, "-q", "--force"))
        self.out.unlink()

    def test_shards(self):
        def copy(case="ds3-fp8"):
            folder = pathlib.Path(tempfile.mkdtemp(dir=TEMP))
            shutil.copytree(CASES / case, folder, dirs_exist_ok=True)
            return folder

        folder = copy()
        shard = sorted(folder.glob("model-*.safetensors"))[1]
        good = shard.read_bytes()
        for content in (good[:-1], good[:len(good) // 2], good[:100], good[:4], b"", good + b"\0", b"\xff" * 8 + good[8:],
                        good[:8] + b"x" + good[9:]):
            shard.write_bytes(content)
            self.bad(folder, shard.name)
        shard.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
        self.bad(folder, shard.name, "git lfs")
        shard.unlink()
        self.bad(folder, shard.name)

        folder = copy()
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        name = next(name for name in index["weight_map"] if name.endswith("weight_scale_inv"))
        del index["weight_map"][name]
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        self.bad(folder, name)

    def edited(self, change, case="ds3-fp8"):
        checkpoint = Checkpoint(CASES / case)
        change(checkpoint)
        return checkpoint.write()

    def test_tensors(self):
        def drop(*names):
            def change(c):
                for name in names:
                    del c.tensors[name]
            return change

        gate, up = ("model.layers.1.mlp.experts.0.gate_proj.weight", "model.layers.1.mlp.experts.3.up_proj.weight")
        self.bad(self.edited(drop(gate, gate + "_scale_inv", up, up + "_scale_inv")), gate, up)  # all at once
        self.bad(self.edited(drop(gate + "_scale_inv")), gate)

        def shape(c):
            dtype, (rows, columns), data = c.tensors["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"]
            c.tensors["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"] = [dtype, [rows - 1, columns], data[:(rows - 1) * columns]]
        self.bad(self.edited(shape), "kv_a_proj_with_mqa.weight", "shape")

        def nan(c):
            dtype, dims, data = c.tensors[up]
            c.tensors[up] = [dtype, dims, data[:5] + b"\x7f" + data[6:]]
        self.bad(self.edited(nan), up, "NaN")

    def test_config(self):
        for case, key, value in (("ds3-f32", "topk_method", "best_of_all"), ("ds3-f32", "scoring_func", "tanh"), ("ds3-f32", "hidden_act", "relu"),
                                 ("ds3-f32", "model_type", "gpt2"), ("ds3-f32", "num_hidden_layers", -1), ("ds3-f32", "n_routed_experts", "many")):
            with self.subTest(key):
                self.bad(self.edited(lambda c: c.config.update({key: value}), case), key)
        for key in ("kv_lora_rank", "hidden_size", "vocab_size"):
            with self.subTest(key):
                self.bad(self.edited(lambda c: c.config.pop(key), "ds3-f32"), key)
        self.bad(self.edited(lambda c: c.config["rope_scaling"].update(surprise=1), "ds3-f32"), "surprise")
        self.bad(self.edited(lambda c: c.config["quantization_config"].update(surprise=1)), "surprise")

        folder = self.edited(lambda c: None, "ds3-f32")
        for content in (b"{", b"[]", b"", b'{"model_type": "deepseek_v3", "model_type": "deepseek_v2"}'):
            (folder / "config.json").write_bytes(content)
            self.bad(folder, "config.json")
        (folder / "config.json").unlink()
        self.bad(folder, "config.json")

    def test_places(self):
        self.bad(TEMP / "absent", "absent")
        result = program("dsv3-convert", CASES / "ds3-f32", TEMP / "absent/out.dsv3", "-q")
        self.fails(result, "absent", name="dsv3-convert")
        self.assertEqual(program("dsv3-convert").returncode, 2)
        self.assertEqual(program("dsv3-convert", CASES / "ds3-f32", TEMP / "o.dsv3", "--dtype", "int3").returncode, 2)

    def test_full_disk(self):
        for allowed in (0, 5000, 50000):
            self.bad(CASES / "ds3-fp8", "out.dsv3", preexec_fn=small_files(allowed))


if __name__ == "__main__":
    main()
