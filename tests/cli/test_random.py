"""dsv3-convert --random: the values are what convert/random.h says, in every geometry and with any number of threads."""
import statistics
from support import *

GOLDEN, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1
DTYPES = {0: "<f4", 1: "<u2", 3: "u1"}
TINY = CASES / "ds3-mtp/config.json"


def mix(z):
    z = np.asarray(z, np.uint64)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def key(seed, name):
    value = 0xCBF29CE484222325
    for c in name.encode():
        value = (value ^ c) * 0x100000001B3 & MASK
    return int(mix((value + int(mix((seed + GOLDEN) & MASK))) & MASK))


def draw(seed, name, n):
    """Places in the table of 4096 values: four from each hash."""
    hashes = mix(np.uint64(key(seed, name)) + np.arange(-(-n // 4), dtype=np.uint64) * np.uint64(GOLDEN))
    return ((hashes[:, None] >> (np.arange(4, dtype=np.uint64) * np.uint64(16))) & np.uint64(4095)).astype(int).reshape(-1)[:n]


def quantiles(n):
    normal = statistics.NormalDist()
    return np.array([round(normal.inv_cdf((i + 0.5) / n) * 4096) / 4096 for i in range(n)])


def bf16(values):
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def e4m3(code):
    exponent, mantissa = code >> 3 & 15, code & 7
    value = mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0**(exponent - 7)
    return -value if code & 128 else value


FINITE = [code for code in range(256) if code & 127 != 127]


def nearest_e4m3(x):
    """Of two equally near the even one."""
    return min(FINITE, key=lambda c: (abs(e4m3(c) - x), c & 1, (c >> 7) != (x < 0)))


def tensors(path):
    """Elements and scales of every tensor of a packed file, after docs/format.md."""
    raw = path.read_bytes()
    parts = struct.unpack_from("<12Q", raw, 64)
    (names, _), (records, size), (extents, _) = ((parts[i], parts[i + 1]) for i in (2, 4, 6))
    out = {}
    for at in range(records, records + size, 96):
        name_at, length, dtype, rank, flags, _ = struct.unpack_from("<QIBBBB", raw, at)
        extent, _, data, data_bytes, scale, scale_bytes = struct.unpack_from("<II4Q", raw, at + 56)
        base = struct.unpack_from("<Q", raw, extents + 32 * extent + 8)[0]
        out[raw[names + name_at:names + name_at + length].decode()] = (
            np.frombuffer(raw[base + data:base + data + data_bytes], DTYPES[dtype]),
            np.frombuffer(raw[base + scale:base + scale + scale_bytes], "<f4"))
    return out


class Random(Case):
    def make(self, config, *args, name="random", **options):
        out = TEMP / f"{name}.dsv3"
        self.ok(program("dsv3-convert", "--random", config, out, "-q", "--force", *args, **options))
        return out

    def test_values(self):
        with np.errstate(over="ignore"):
            got = tensors(self.make(TINY, "--seed", 7, "--dtype", "f8"))
            normal = quantiles(4096)
            for name, mean, deviation in (("model.norm.weight", 1, 0.25), ("model.embed_tokens.weight", 0, 1)):
                elements, scales = got[name]
                want = bf16(np.float32(mean + deviation * normal))[draw(7, name, len(elements))]
                self.assertTrue((elements == want).all(), name)
                self.assertEqual(len(scales), 0)
            name = "model.layers.1.mlp.gate.e_score_correction_bias"
            elements, _ = got[name]
            self.assertTrue((elements == np.float32(0.1 * normal)[draw(7, name, len(elements))]).all())

            rest = quantiles(4096 - 254)
            codes = np.array(FINITE + [nearest_e4m3(np.float32(np.float32(x) * np.float32(448 / rest[-1]))) for x in rest])
            name = "model.layers.0.self_attn.kv_b_proj.weight"
            elements, scales = got[name]
            self.assertTrue((elements == codes[draw(7, name, len(elements))]).all())
            columns = json.loads(TINY.read_text())["kv_lora_rank"]
            size = columns**-0.5 / np.sqrt(np.mean([e4m3(c)**2 for c in codes]))
            hashes = mix(np.uint64(key(7, name + "_scale_inv")) + np.arange(len(scales), dtype=np.uint64) * np.uint64(GOLDEN))
            want = size * (0.75 + (hashes >> np.uint64(40)).astype(float) * 2.0**-25)
            np.testing.assert_allclose(scales, want, rtol=1e-6)

    def test_threads_and_seeds(self):
        one, three, other = (self.make(TINY, "--dtype", "f8", "--seed", seed, name=str(i),
                                       env={**os.environ, "OMP_NUM_THREADS": threads}).read_bytes()
                             for i, (seed, threads) in enumerate(((5, "1"), (5, "3"), (6, "3"))))
        self.assertTrue(one == three)
        self.assertFalse(one == other)

    def test_activations_keep_their_size_through_61_layers(self):
        config = {**json.loads(TINY.read_text()), "num_hidden_layers": 61}
        (TEMP / "deep.json").write_text(json.dumps(config))
        model = self.make(TEMP / "deep.json", "--dtype", "f8", "--layers", 61)
        self.ok(dsv3("dump", model, "--ids", "1,2,3,4,5,6,7,8", "--out", TEMP / "deep.safetensors"))
        got = load_safetensors(TEMP / "deep.safetensors")
        size = np.sqrt((got["hidden"].astype(float)**2).mean((1, 2)))
        self.assertEqual(len(size), 62)
        self.assertTrue((size > 0.5).all() and (size < 50).all(), size)
        self.assertTrue(np.isfinite(got["logits"]).all())
        used = {int(e) for name, ids in got.items() if name.startswith("router_ids.") for e in ids.flat}
        self.assertEqual(used, set(range(config["n_routed_experts"])))

    def test_commands_without_a_tokenizer(self):
        model = self.make(TINY, "--layers", 1)
        self.assertIn(b"num_hidden_layers", self.ok(dsv3("info", model)))
        self.fails(dsv3("run", model, "-p", "x"), "tokenizer")

    def test_head_in_f8(self):
        folder = CASES / "ds3-f32"
        for kind in ("keep", "f8"):
            out = TEMP / f"head-{kind}.dsv3"
            self.ok(program("dsv3-convert", folder, out, "-q", "--head", kind))
            self.ok(dsv3("dump", out, "--ids", "3,1,4,1,5", "--out", TEMP / f"{kind}.safetensors"))
        keep, f8 = (load_safetensors(TEMP / f"{kind}.safetensors") for kind in ("keep", "f8"))
        self.assertTrue((keep["hidden"] == f8["hidden"]).all())  # nothing but the head differs
        difference = np.abs(keep["logits"] - f8["logits"]) / np.abs(keep["logits"]).max()
        self.assertTrue(0 < difference.max() < 0.05, difference.max())

    def test_refused(self):
        def refused(*args, code=1, **options):
            self.fails(program("dsv3-convert", *args, **options), code=code, name="dsv3-convert")

        out = TEMP / "refused.dsv3"
        refused("--random", TINY, out, "--layers", 0)
        refused("--random", TINY, out, "--layers", 100)
        refused("--random", TINY, out, "--seed", "x", code=2)
        refused("--random", TINY, out, "--dtype", "i32", code=2)
        refused(TINY, out, "--layers", 1, code=2)
        refused("--random", TEMP / "absent.json", out)
        refused("--random", CASES / "mixtral-window/config.json", out, "--head", "f8", "-q")  # tied
        refused(CASES / "mixtral-window", out, "--head", "f8", "-q")
        (TEMP / "bad.json").write_text('{"model_type": "gpt2"}')
        refused("--random", TEMP / "bad.json", out)
        self.assertFalse(list(TEMP.glob("refused*")))


if __name__ == "__main__":
    main()
