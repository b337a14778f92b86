"""The CUDA backend on the host (test_cuda.py) with a context of many parts."""
from dumps import *


class Golden(DumpCase):
    program = "dsv3-cuda-host"

    def test_long(self):
        for phase in ("prompt", "decode"):
            with self.subTest(phase):
                got = self.dump_case("ds3-long", "--backend", "cuda", "--exact", "--phase", phase)
                self.assert_golden("ds3-long", load_safetensors(got))


if __name__ == "__main__":
    main()
