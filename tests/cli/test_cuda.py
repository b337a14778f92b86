"""The CUDA backend, its kernels running on the host's processor (tests/cuda_host): whole models, in exact mode but for what says otherwise."""
from dumps import *

CUDA = ["--backend", "cuda", "--exact"]
PHASES = ("prompt", "decode")


class CudaCase(DumpCase):
    program = os.environ.get("DSV3_CUDA_PROGRAM", "dsv3-cuda-host")


class Golden(CudaCase):
    def test_short(self):
        for case in SHORT_CASES:
            for attention in ("absorbed", "expanded"):
                for phase in PHASES:
                    with self.subTest(case, attention=attention, phase=phase):
                        got = self.dump_case(case, *CUDA, "--attention", attention, "--phase", phase)
                        self.assert_golden(case, load_safetensors(got))

    def test_layer(self):
        case = CASES / "moe-transformer"
        want, out = load_safetensors(case / "expected.safetensors"), TEMP / "layer.safetensors"
        for name, mask in (("none", "none"), ("causal", "causal"), ("float", "float_mask")):
            with self.subTest(name):
                self.ok(program(self.program, "layer", packed(case), "--in", case / "expected.safetensors", "--out", out, "--mask", mask, *CUDA))
                got = load_safetensors(out)
                self.assertLess(relative(got["output"], want[f"output.{name}"]), BOUND)
                self.assertTrue((np.sort(got["router_ids"], 1) == np.sort(want[f"router_ids.{name}"], 1)).all())

    def test_text(self):
        """Prompt and decode steps of a trained model."""
        row = EXPECTED["greedy"][0]
        result = program(self.program, "run", packed(DEMO), "-q", "--temp", 0, "-p", row["prompt"], "-n", len(row["new_ids"]), *CUDA)
        self.assertEqual(self.ok(result).decode(), row["text"])


class Options(CudaCase):
    """What is rounded is rounded as the reference does it, but for values between two codes."""

    def test_rounding(self):
        for options in (["--kv", "bf16"], ["--gemm", "fp8:f32"], ["--gemm", "fp8:ue8m0"]):
            for phase in PHASES:
                with self.subTest(options, phase=phase):
                    want, got = (load_safetensors(self.dump_case("ds3-fp8-ue8m0", "--backend", backend, "--exact", "--phase", phase, *options))
                                 for backend in ("ref", "cuda"))
                    for name in ("a/logits", "a/hidden"):
                        self.assertLess(np.abs(got[name] - want[name]).mean() / np.abs(want[name]).max(), 1e-3, name)


class SameBits(CudaCase):
    def test_cutting_and_batch_mates(self):
        for case in ("ds3-fp8", "mixtral-window", "ds3-mtp"):
            for phase in PHASES:
                for attention in ("absorbed", "expanded"):
                    args = [*CUDA, "--phase", phase, "--attention", attention]
                    base = self.dump_case(case, *args)
                    for chunk in (1, 7):
                        with self.subTest(case, phase=phase, attention=attention, chunk=chunk):
                            self.assert_same_bits(base, self.dump_case(case, *args, "--chunk", chunk))
                together = load_safetensors(base)
                mtp = ["--mtp"] if case == "ds3-mtp" else []
                for sequence, ids in ids_of(case).items():
                    with self.subTest(case, phase=phase, sequence=sequence):
                        alone = load_safetensors(self.dump(packed(CASES / case), ids, *mtp, *args))
                        for name, values in alone.items():
                            np.testing.assert_array_equal(values, together[f"{sequence}/{name}"], name)

    def test_fast_mode(self):
        for attention in ("absorbed", "expanded"):
            args = ["--backend", "cuda", "--phase", "prompt", "--attention", attention]
            with self.subTest(attention):
                self.assert_same_bits(self.dump_case("ds3-fp8", *args), self.dump_case("ds3-fp8", *args, "--chunk", 7))

    def test_another_gpu(self):
        base = self.dump_case("ds3-fp8", *CUDA)
        self.assert_same_bits(base, self.dump_case("ds3-fp8", "--backend", "cuda:1", "--exact"))


class Fast(CudaCase):
    """Activations of prompts are bf16 where the matrix unit multiplies them; decode steps stay exact."""
    CASES = ("ds3-fp8", "kimi-k2-fp8", "mixtral", "qwen3-moe-fp8")
    ARGS = ["--backend", "cuda", "--kv", "f32"]

    def test_golden(self):
        for case in self.CASES:
            exact = self.dump_case(case, *CUDA)
            for phase in PHASES:
                with self.subTest(case, phase=phase):
                    got = load_safetensors(self.dump_case(case, *self.ARGS, "--phase", phase, "--routing", exact))
                    errors = [np.abs(got[f"{s}/logits"][t.get("positions", slice(None))] - t["logits"]) / np.abs(t["logits"]).max()
                              for s, t in golden(case).items()]
                    mean = np.mean([e.mean() for e in errors])
                    if phase == "prompt":
                        self.assertTrue(1e-5 < mean < 4e-3, mean)
                    else:
                        self.assertLess(max(e.max() for e in errors), BOUND)

    def test_cutting(self):
        for case in self.CASES[:2]:
            for options in ([], ["--gemm", "fp8:f32"]):
                base = self.dump_case(case, *self.ARGS, *options)
                for chunk in (1, 7):
                    with self.subTest(case, options=options, chunk=chunk):
                        self.assert_same_bits(base, self.dump_case(case, *self.ARGS, *options, "--chunk", chunk))

    def test_rounding(self):
        """What attention rounds to bf16 moves values across the borders between two codes, as it does in the host's fast mode."""
        for gemm in ("fp8:f32", "fp8:ue8m0"):
            with self.subTest(gemm):
                exact = self.dump_case("ds3-fp8-ue8m0", *CUDA, "--gemm", gemm)
                fast = self.dump_case("ds3-fp8-ue8m0", *self.ARGS, "--gemm", gemm, "--routing", exact)
                want, got = (load_safetensors(path)["a/logits"] for path in (exact, fast))
                self.assertLess(np.abs(got - want).mean() / np.abs(want).max(), 3e-2)


class Missing(CudaCase):
    """A GPU that is asked for and not there is an error."""

    def refused(self, backend, *parts, name="dsv3", **more):
        result = program(name, "dump", packed(CASES / "ds3-f32"), "--ids", "1", "--out", TEMP / "never.safetensors", "--backend", backend)
        self.fails(result, f'backend "{backend}"', *parts, **more)
        self.assertFalse((TEMP / "never.safetensors").exists())

    def test_numbers(self):
        self.refused("cuda:2", "GPU 2", "this machine has 2", name=self.program)
        for text in ("cuda:", "cuda:x", "cuda:1x", "cuda:99999999999", "cuda:-1"):
            self.refused(text, name=self.program)

    def test_without_a_gpu(self):
        version = dsv3("--version").stdout
        if b"CUDA: not built in" in version:
            self.refused("cuda", "this build has: cpu ref")
        elif not pathlib.Path("/dev/nvidiactl").exists():
            self.refused("cuda", "no GPU can be used")


class Bench(CudaCase):
    def test_ceilings(self):
        """Shares are of what the devices can do together: a divided model has a bound between its devices' own."""
        rows = json.loads(self.ok(program(self.program, "bench", packed(DEMO), "--backend", "cuda", "--place", "layers 0-2 routed_experts=cpu",
                                          "--prompt", 8, "--generate", 2, "--repeat", 1, "--json")))
        for key in ("prefill_tok_s", "decode_tok_s", "decode_GBps", "read_ceiling_GBps", "gpu_ceiling_GBps", "link_ceiling_GBps", "matrix_ceiling_TFLOPS"):
            self.assertGreater(rows[0][key], 0, key)
        self.assertTrue(0 < rows[0]["decode_share"] < 1, rows)


class Automatic(CudaCase):
    """Takes a GPU if one can be used, and says what it took and why."""

    def stderr(self, name, *args):
        result = program(name, "run", packed(DEMO), "-p", "It", "-n", 1, "--backend", "auto", *args)
        self.ok(result)
        return result.stderr.decode()

    def test_choice(self):
        self.assertIn("backend auto, which is cuda:0 (the host's processor), the first GPU that can be used", self.stderr(self.program))
        chosen = self.stderr("dsv3")
        if b"CUDA: not built in" in dsv3("--version").stdout:
            self.assertIn("backend auto, which is cpu; this build has no CUDA", chosen)
        elif not pathlib.Path("/dev/nvidiactl").exists():
            self.assertIn("backend auto, which is cpu; no GPU can be used", chosen)
        self.assertEqual(self.stderr(self.program, "-q"), "")


class Divided(CudaCase):
    """Between GPU and host; the unit tests have more divisions."""

    def run_demo(self, *args):
        result = program(self.program, "run", packed(DEMO), "-p", "It was", "-n", 24, "-s", 1, "-q", "--exact", *args)
        return self.ok(result)

    def test_text(self):
        alone = self.run_demo()
        for split in (["--gpu-memory", "526M"],
                      ["--place", "routed_experts=cpu"],
                      ["--place", "layers 1-4 experts 3-9=cpu", "--place", "layers 2 attention=cpu", "--place", "embed=cpu"],
                      ["--gpu-memory", "526M", "--place", "layers 3-5 experts 0-7=cuda", "--place", "head=cpu"]):
            with self.subTest(split=split):
                self.assertEqual(self.run_demo("--backend", "cuda", *split), alone)

    def test_golden(self):
        for case, split in (("ds3-mtp", ["--place", "layers 1 experts 0-1=cpu"]),
                            ("ds3-fp8", ["--place", "routed_experts=cpu", "--place", "layers 0 attention=cpu"])):
            with self.subTest(case):
                first, second = (self.dump_case(case, *CUDA, *split) for _ in range(2))
                self.assert_golden(case, load_safetensors(first))
                self.assert_same_bits(first, second)

    def test_streamed(self):
        """Prompts with experts brought to the GPU, several groups a layer: all of them, and those that another division leaves."""
        for case, split in (("ds3-mtp", ["--place", "routed_experts=cpu"]),
                            ("ds3-fp8", ["--place", "layers 1 experts 0-4=cpu", "--place", "layers 0 attention=cpu"])):
            for chunk in ((), ("--chunk", 3)):
                with self.subTest(case, chunk=chunk):
                    first, second = (self.dump_case(case, *CUDA, *split, *chunk, "--phase", "prompt", "--stream-from", 2) for _ in range(2))
                    self.assert_golden(case, load_safetensors(first))
                    self.assert_same_bits(first, second)
        self.assertEqual(self.run_demo("--backend", "cuda", "--place", "routed_experts=cpu", "--stream-from", 2), self.run_demo())

    def test_bench_counts_crossings(self):
        args = ("bench", packed(DEMO), "--prompt", 0, "--generate", 2, "--repeat", 1, "--json", "--backend", "cuda")
        config = json.loads((DEMO / "config.json").read_text())
        plan = json.loads(self.ok(dsv3("plan", packed(DEMO), "--place", "routed_experts=cpu", "--json")))
        row, = json.loads(self.ok(program(self.program, *args, "--place", "routed_experts=cpu")))
        self.assertEqual(row["crossings"], plan["crossings_per_token"])
        self.assertGreater(row["crossed_kB"], plan["crossed_per_token"] / 1e3)  # the step's inputs come on top
        self.assertGreater(row["waited_us_per_layer"], 0)
        self.assertEqual(plan["crossings_per_token"], 2 * (config["num_hidden_layers"] - config["first_k_dense_replace"]))
        row, = json.loads(self.ok(program(self.program, *args)))
        self.assertNotIn("crossings", row)

    def test_nothing_placed(self):
        result = program(self.program, "run", packed(DEMO), "-p", "a", "-n", 1, "-q", "--backend", "cuda", "--gpu-memory", "100M")
        self.ok(result)
        self.assertIn(b"gpu_memory is 0.10 GiB, and a GPU's driver alone is estimated to take 0.50 GiB", result.stderr)

    def test_refused(self):
        self.fails(program("dsv3", "run", packed(DEMO), "-p", "a", "--gpu-memory", "1G"), "open the model with one")
        self.fails(program(self.program, "run", packed(DEMO), "-p", "a", "--backend", "cuda", "--place", "head=cuda:1"),
                   "got GPU 1, but there are 1 in use")


if __name__ == "__main__":
    main()
