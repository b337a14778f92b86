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


if __name__ == "__main__":
    main()
