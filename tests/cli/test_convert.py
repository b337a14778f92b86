"""dsv3-convert: what it says and leaves behind, on good checkpoints and on those that are wrong in one place."""
import re

from support import *

sys.path.insert(0, str(ROOT / "tests"))
import synthetic


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in pathlib.Path(folder).rglob("*"))


def f8_values():
    """The 256 values of F8_E4M3; NaN as 0, which no test uses."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    value = np.where(exponent == 0, mantissa * 2.0 ** -9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return np.where(codes & 127 == 127, 0, np.where(codes & 128, -value, value)).astype(np.float32)


class Convert(Case):
    def setUp(self):
        for left in TEMP.glob("out*.dsv3*"):  # of a test that failed
            left.unlink()

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
        for args in ([CASES / "ds3-f32", ""], ["", TEMP / "o.dsv3"], ["--check", CASES / "ds3-f32", ""], ["--export", CASES / "ds3-f32", ""]):
            self.fails(program("dsv3-convert", *args), "argument is empty", code=2, name="dsv3-convert")
        self.assertEqual(program("dsv3-convert", CASES / "ds3-f32", TEMP / "o.dsv3", "--dtype", "int3").returncode, 2)

    def test_full_disk(self):
        self.ok(self.convert(CASES / "ds3-fp8", "-q"))
        good = self.out.read_bytes()
        self.out.unlink()
        for allowed in (0, 5000, 500000):
            result = self.convert(CASES / "ds3-fp8", "-q", preexec_fn=small_files(allowed))
            self.fails(result, "out.dsv3", name="dsv3-convert")
        # The last one had room for something: that stays.
        self.assertIn(b"the same command goes on from there", result.stderr)
        self.assertEqual(sorted(p.name for p in TEMP.glob("out.dsv3*")), ["out.dsv3.journal", "out.dsv3.partial"])
        result = self.convert(CASES / "ds3-fp8")
        self.ok(result)
        self.assertIn(b"going on with an unfinished conversion", result.stderr)
        self.assertTrue(self.out.read_bytes() == good)
        self.out.unlink()

    def test_disk_that_fills_up(self):
        """A real full disk, where this machine lets us mount one: another program takes the room that was there."""
        mount = ["unshare", "--map-root-user", "--mount"]
        disk = pathlib.Path(tempfile.mkdtemp(dir=TEMP))
        if subprocess.run([*mount, "mount", "-t", "tmpfs", "none", disk], capture_output=True).returncode != 0:
            self.skipTest("no file system can be mounted here")
        folder = synthetic.make(TEMP / "filling", 60e6)
        self.ok(self.convert(folder, "-q"))
        script = r"""
import os, re, subprocess, sys
convert, folder, disk, good = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "none", disk], check=True)
command = [convert, folder, disk + "/m.dsv3", "--threads", "1"]
process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, bufsize=1)
while " %, " not in process.stderr.readline():
    pass
with open(disk + "/filler", "wb", buffering=0) as filler:
    try:
        while True:
            filler.write(bytes(1 << 16))
    except OSError:
        pass
message = process.stderr.read()
assert process.wait() == 1, message
assert "the disk is full at byte" in message and "more bytes are needed and " in message, message
assert "the same command goes on" in message, message
# Exactly what was asked for is enough, and a page less is not.
needed, available = map(int, re.search(r"(\d+) more bytes are needed and (\d+) available", message).groups())
for less, code in ((4096, 1), (0, 0)):
    asked = needed - available - less
    os.truncate(disk + "/filler", os.path.getsize(disk + "/filler") - -(-asked // 4096) * 4096)
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == code, (less, message, result.stderr)
    if code:
        needed, available = map(int, re.search(r"it needs (\d+) bytes, but .* has (\d+) available", result.stderr).groups())
        assert needed - available == less, (needed, available)
assert "going on with an unfinished conversion" in result.stderr, result.stderr
assert sorted(os.listdir(disk)) == ["filler", "m.dsv3"]
assert open(disk + "/m.dsv3", "rb").read() == open(good, "rb").read()
"""
        result = subprocess.run([*mount, sys.executable, "-c", script, BIN / "dsv3-convert", folder, disk, self.out], capture_output=True)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        self.out.unlink()

    def test_export_to_a_small_disk(self):
        mount = ["unshare", "--map-root-user", "--mount"]
        disk = pathlib.Path(tempfile.mkdtemp(dir=TEMP))
        if subprocess.run([*mount, "mount", "-t", "tmpfs", "none", disk], capture_output=True).returncode != 0:
            self.skipTest("no file system can be mounted here")
        result = subprocess.run([*mount, "sh", "-c", 'mount -t tmpfs -o size=100k none "$1" && cd "$1" && "$2" -q --export "$3" back; code=$?; ls; exit $code',
                                 "sh", disk, BIN / "dsv3-convert", packed(CASES / "ds3-fp8")], capture_output=True)
        self.fails(result, "create back: it needs ", "available; free ", name="dsv3-convert")

    def test_full_standard_output(self):
        for args in (["--version"], ["--help"], [CASES / "ds3-f32", TEMP / "o.dsv3", "--dry-run", "-q"]):
            with open("/dev/full", "wb") as full:
                self.fails(program("dsv3-convert", *args, stdout=full), "standard output", name="dsv3-convert")
        self.assertTrue(self.ok(program("dsv3-convert", "--version")).startswith(b"dsv3-convert "))

    def test_what_comes_next(self):
        result = self.convert(DEMO)
        self.ok(result)
        self.assertIn(f"; try: dsv3 run {self.out}".encode(), result.stderr)
        result = self.convert(CASES / "ds3-f32", "--force")
        self.ok(result)
        self.assertIn(b"no tokenizer", result.stderr)
        self.assertNotIn(b"dsv3 run", result.stderr)
        self.assertIn(f"; try: dsv3 info {self.out}".encode(), result.stderr)
        self.out.unlink()

    def test_progress(self):
        folder = synthetic.make(TEMP / "progress", 4e6)
        result = self.convert(folder)
        self.ok(result)
        lines = [line for line in result.stderr.decode().splitlines() if " %, " in line]
        percents = [int(line.split()[0]) for line in lines]
        self.assertTrue(5 < len(lines) <= 12, result.stderr)
        self.assertEqual((percents, percents[-1]), (sorted(percents), 100))
        self.assertIn(" MB of ", lines[-1])
        self.out.unlink()

    def test_interrupt(self):
        folder = synthetic.make(TEMP / "interrupt", 60e6)
        self.ok(self.convert(folder, "-q"))
        good = self.out.read_bytes()
        self.out.unlink()
        for number in (signal.SIGINT, signal.SIGTERM):
            process = subprocess.Popen([BIN / "dsv3-convert", folder, self.out, "--threads", "1"], stderr=subprocess.PIPE, bufsize=0)
            line = b""
            while b" %, " not in line:
                line = process.stderr.readline()
            process.send_signal(number)
            message = process.communicate()[1]
            self.assertEqual(process.returncode, 128 + number, message)
            self.assertIn(b"cancelled", message)
            self.assertFalse(self.out.exists())
        self.ok(self.convert(folder, "-q"))
        self.assertTrue(self.out.read_bytes() == good)
        self.assertEqual([p.name for p in TEMP.glob("out.dsv3*")], ["out.dsv3"])
        self.out.unlink()

    def test_hub_cache(self):
        hub = pathlib.Path(tempfile.mkdtemp(dir=TEMP)) / "hub"
        snapshot = hub / "models--org--name/snapshots" / ("a" * 40)
        (hub / "models--org--name/refs").mkdir(parents=True)
        (hub / "models--org--name/refs/main").write_text("a" * 40)
        shutil.copytree(CASES / "ds3-f32", snapshot)
        empty = {"HF_HUB_CACHE": "", "HF_HOME": "", "XDG_CACHE_HOME": "", "HOME": str(TEMP / "nowhere")}
        for name, value in (("HF_HUB_CACHE", hub), ("HF_HOME", hub.parent)):
            result = self.convert("org/name", "-q", env={**os.environ, **empty, name: str(value)})
            self.ok(result)
            self.out.unlink()
        for name, folder in (("XDG_CACHE_HOME", ""), ("HOME", ".cache")):
            root = pathlib.Path(tempfile.mkdtemp(dir=TEMP))
            (root / folder / "huggingface").mkdir(parents=True)
            (root / folder / "huggingface/hub").symlink_to(hub)
            self.ok(self.convert("org/name@main", "-q", env={**os.environ, **empty, name: str(root)}))
            self.out.unlink()
        self.fails(self.convert("org/name", "-q", env={**os.environ, **empty}), "org/name", "hf download org/name", name="dsv3-convert")
        self.ok(self.convert(hub / "models--org--name", "-q"))
        self.out.unlink()

    def test_split(self):
        one = packed(CASES / "ds3-fp8")
        folder = pathlib.Path(tempfile.mkdtemp(dir=TEMP))
        result = program("dsv3-convert", CASES / "ds3-fp8", folder / "m.dsv3", "--split-size", "1M")
        self.ok(result)
        self.assertEqual(tree(folder), [f"m-0000{i}-of-00003.dsv3" for i in (1, 2, 3)])
        self.assertIn(b"in 3 files", result.stderr)
        expected = json.loads(self.ok(dsv3("info", one, "--json")))
        for name in tree(folder):
            self.assertLess((folder / name).stat().st_size, 1e6)
            info = json.loads(self.ok(dsv3("info", folder / name, "--json")))
            self.assertEqual((info["id"], info["tensors"]), (expected["id"], expected["tensors"]))
            self.assertEqual(info["file_bytes"], sum(p.stat().st_size for p in folder.iterdir()))
        for model, out in ((one, "a"), (folder / "m-00002-of-00003.dsv3", "b")):
            self.ok(dsv3("dump", model, "--ids", "1,2,3", "--out", TEMP / f"{out}.safetensors"))
        self.assertTrue((TEMP / "a.safetensors").read_bytes() == (TEMP / "b.safetensors").read_bytes())
        (folder / "m-00003-of-00003.dsv3").unlink()
        self.fails(dsv3("info", folder / "m-00001-of-00003.dsv3"), "m-00003-of-00003.dsv3", "file 1 of 3")
        # No file can be smaller than its tensors: nothing is written, and the size that is told does.
        small = program("dsv3-convert", "-q", CASES / "ds3-fp8", folder / "n.dsv3", "--split-size", "20000")
        self.fails(small, "n-0000", "more than the split size of 20000", name="dsv3-convert")
        self.assertEqual([name for name in tree(folder) if name.startswith("n")], [])
        least = re.search(rb"try --split-size (\d+) or more", small.stderr).group(1).decode()
        self.fails(program("dsv3-convert", "-q", CASES / "ds3-fp8", folder / "n.dsv3", "--split-size", int(least) - 1), least, name="dsv3-convert")
        self.ok(program("dsv3-convert", "-q", CASES / "ds3-fp8", folder / "n.dsv3", "--split-size", least))
        self.assertEqual(program("dsv3-convert", "a", "b", "--split-size", "5X").returncode, 2)
        self.assertEqual(program("dsv3-convert", "a", "b", "--split-size", "0").returncode, 2)
        self.assertEqual(program("dsv3-convert", "a", "b", "--split-size", "99999999999999G").returncode, 2)

    def test_dry_run(self):
        before = tree(TEMP)
        text = self.ok(self.convert(CASES / "ds3-fp8", "--dry-run", "--split-size", "1M", "-q")).decode()
        self.assertEqual(tree(TEMP), before)
        for part in ("out-00001-of-00003.dsv3", "routed_experts", "53 tensors"):
            self.assertIn(part, text)

    def test_check_and_export(self):
        model = packed(CASES / "ds3-fp8")
        result = program("dsv3-convert", "--check", CASES / "ds3-fp8", model)
        self.ok(result)
        self.assertIn(b"the same, bit for bit", result.stderr)
        self.ok(program("dsv3-convert", "--export", model, TEMP / "back", "--shard-size", "1M"))
        self.ok(program("dsv3-convert", "--check", TEMP / "back", model, "-q"))
        self.fails(program("dsv3-convert", "--export", model, TEMP / "back", "-q"), "exists", name="dsv3-convert")
        checkpoint = Checkpoint(CASES / "ds3-fp8")
        name = "model.layers.1.mlp.experts.0.gate_proj.weight"
        dtype, shape, data = checkpoint.tensors[name]
        checkpoint.tensors[name] = [dtype, shape, data[:9] + bytes([data[9] ^ 1]) + data[10:]]
        folder = checkpoint.write()
        shutil.copy(CASES / "ds3-fp8/config.json", folder)
        self.fails(program("dsv3-convert", "--check", folder, model, "-q"), name, "element 9 differs", name="dsv3-convert")
        for args in (["--check", "--export"], ["--check", "--dtype", "f8"], ["--export", "--force"], ["--dry-run", "--consume"]):
            self.assertEqual(program("dsv3-convert", *args, "a", "b").returncode, 2)

    def test_consume(self):
        folder = pathlib.Path(tempfile.mkdtemp(dir=TEMP))
        shutil.copytree(CASES / "ds3-fp8", folder, dirs_exist_ok=True)
        self.ok(self.convert(folder, "--consume", "-q"))
        self.assertFalse([name for name in tree(folder) if name.endswith(".safetensors") and name.startswith("model-")])
        self.assertTrue(self.out.read_bytes() == packed(CASES / "ds3-fp8").read_bytes())
        self.fails(self.convert(folder, "-q", "--force"), "shards", "are missing", name="dsv3-convert")
        self.out.unlink()

    def test_fp8_everywhere(self):
        """Embedding, head and router in FP8 compute what their decoded values compute."""
        values = f8_values()
        random = np.random.default_rng(5)
        coded, decoded = Checkpoint(CASES / "ds3-f32"), Checkpoint(CASES / "ds3-f32")
        scale_types = (("F32", lambda x: x.astype("<f4")), ("F16", lambda x: x.astype("<f2")),
                       ("BF16", lambda x: (x.astype("<f4").view("<u4") >> 16).astype("<u2")))
        names = [n for n in coded.tensors if n in ("model.embed_tokens.weight", "lm_head.weight") or n.endswith("mlp.gate.weight")]
        self.assertGreater(len(names), 2)
        for i, name in enumerate(names):
            shape = coded.tensors[name][1]
            codes = random.integers(0, 0x60, shape).astype(np.uint8)
            grid = [-(-n // 128) for n in shape]
            scales = 2.0 ** random.integers(-6, -2, grid)
            kind, encode = scale_types[i % 3]
            coded.tensors[name] = ["F8_E4M3", shape, codes.tobytes()]
            coded.tensors[name + "_scale_inv"] = [kind, grid, encode(scales).tobytes()]
            spread = np.kron(scales, np.ones((128, 128)))[:shape[0], :shape[1]]
            decoded.tensors[name] = ["F32", shape, (values[codes] * spread).astype("<f4").tobytes()]
        logits = []
        for checkpoint, name in ((coded, "coded"), (decoded, "decoded")):
            self.ok(program("dsv3-convert", checkpoint.write(), TEMP / f"{name}.dsv3", "-q"))
            self.ok(dsv3("dump", TEMP / f"{name}.dsv3", "--ids", "1,2,3,4,5", "--out", TEMP / f"{name}.safetensors"))
            logits.append(load_safetensors(TEMP / f"{name}.safetensors")["logits"])
        np.testing.assert_allclose(logits[0], logits[1], rtol=1e-6, atol=1e-6 * np.abs(logits[1]).max())


if __name__ == "__main__":
    main()
