"""The CUDA backend, its kernels running on the host's processor (tests/cuda_host): whole models, in exact mode but for what says otherwise."""
from dumps import *

CUDA = ["--backend", "cuda", "--exact"]
PHASES = ("prompt", "decode")


class CudaCase(DumpCase):
    program = "dsv3-cuda-host"


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


class Divided(CudaCase):
    """Between GPU and host; the unit tests have more divisions."""

    def run_demo(self, *args):
        result = program(self.program, "run", packed(DEMO), "-p", "It was", "-n", 24, "-s", 1, "-q", "--exact", *args)
        return self.ok(result)

    def test_text(self):
        alone = self.run_demo()
        for split in (["--gpu-memory", "520M"],
                      ["--place", "routed_experts=cpu"],
                      ["--place", "layers 1-4 experts 3-9=cpu", "--place", "layers 2 attention=cpu", "--place", "embed=cpu"],
                      ["--gpu-memory", "523M", "--place", "layers 3-5 experts 0-7=cuda", "--place", "head=cpu"]):
            with self.subTest(split=split):
                self.assertEqual(self.run_demo("--backend", "cuda", *split), alone)

    def test_golden(self):
        for case, split in (("ds3-mtp", ["--place", "layers 1 experts 0-1=cpu"]),
                            ("ds3-fp8", ["--place", "routed_experts=cpu", "--place", "layers 0 attention=cpu"])):
            with self.subTest(case):
                first, second = (self.dump_case(case, *CUDA, *split) for _ in range(2))
                self.assert_golden(case, load_safetensors(first))
                self.assert_same_bits(first, second)

    def test_refused(self):
        self.fails(program("dsv3", "run", packed(DEMO), "-p", "a", "--gpu-memory", "1G"), "open the model with one")
        self.fails(program(self.program, "run", packed(DEMO), "-p", "a", "--backend", "cuda", "--place", "head=cuda:1"),
                   "got GPU 1, but there are 1 in use")


if __name__ == "__main__":
    main()
