"""The CUDA backend, its kernels running on the host's processor (tests/cuda_host): whole models in exact mode."""
from dumps import *

CUDA = ["--backend", "cuda", "--exact"]


class CudaCase(DumpCase):
    program = "dsv3-cuda-host"


class Golden(CudaCase):
    def test_short(self):
        for case in SHORT_CASES:
            for attention in ("absorbed", "expanded"):
                for phase in ("prompt", "decode"):
                    with self.subTest(case, attention=attention, phase=phase):
                        got = self.dump_case(case, *CUDA, "--attention", attention, "--phase", phase)
                        self.assert_golden(case, load_safetensors(got))


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
