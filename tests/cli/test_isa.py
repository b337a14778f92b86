"""The fast backend on every instruction-set path: goldens in exact mode, and bits that depend on path and phase only."""
import re

from dumps import *

PATHS = ("portable", "avx2", "avx512", "avx512bf16", "avx512fp16", "amx")
USABLE = re.search(rb"instruction sets: (.*)", dsv3("--version").stdout).group(1).decode().split()


for missing in sorted(set(PATHS) - set(USABLE)):
    print(f"skipped: this machine has no {missing}", file=sys.stderr)


class FastGolden(DumpCase):
    def test_exact(self):
        for path in USABLE:
            fast = ["--backend", "cpu", "--isa", path, "--exact"]
            for case in SHORT_CASES:
                for attention in ("absorbed", "expanded"):
                    for phase in ("prompt", "decode"):
                        with self.subTest(case, path=path, attention=attention, phase=phase):
                            args = [*fast, "--attention", attention, "--phase", phase]
                            self.assert_golden(case, load_safetensors(self.dump_case(case, *args)))

    def test_long(self):
        fast = ["--backend", "cpu", "--exact"]
        self.assert_golden("ds3-long", load_safetensors(self.dump_case("ds3-long", *fast, "--phase", "prompt")))

    def test_rounding_of_the_fast_mode(self):
        """Without --exact activations may be rounded to bf16 or f16, and the cache is: 2^-9 a value, far less in the mean."""
        for path in USABLE:
            for case in ("ds3-f32", "qwen3-moe"):  # little depends on which experts are chosen
                got = load_safetensors(self.dump_case(case, "--backend", "cpu", "--isa", path))
                for sequence, tensors in golden(case).items():
                    difference = np.abs(got[f"{sequence}/logits"].astype(np.float64) - tensors["logits"])
                    self.assertLess(np.median(difference) / np.abs(tensors["logits"]).max(), 1e-2, (case, path))


    def test_given_routing(self):
        """Experts as recorded: the exact mode gives itself again, and the fast mode's own error is what remains."""
        for case in ("ds3-fp8", "ds2-grouped", "qwen3-moe-fp8"):
            exact = self.dump_case(case, "--backend", "cpu", "--exact")
            want = load_safetensors(exact)
            for name, values in load_safetensors(self.dump_case(case, "--backend", "cpu", "--exact", "--routing", exact)).items():
                self.assertLess(relative(values, want[name]), 1e-5, name)
            want, got = load_safetensors(exact), load_safetensors(self.dump_case(case, "--backend", "cpu", "--routing", exact))
            for name, values in got.items():
                if "router_ids" in name:
                    np.testing.assert_array_equal(values, want[name], name)
                elif name.endswith("logits"):
                    self.assertLess(relative(values, want[name]), 0.05, name)

    def test_routing_of_other_ids(self):
        dump = self.dump(packed(CASES / "ds3-fp8"), [1, 2, 3])
        out = TEMP / "never.safetensors"
        result = dsv3("dump", packed(CASES / "ds3-fp8"), "--ids", "1,2,3,4", "--out", out, "--routing", dump)
        self.fails(result, "router_ids", "got shape [3,", "expected [4,")


class FastBits(DumpCase):
    def test_threads_and_cutting(self):
        for path in USABLE:
            for options in (["--exact"], []):
                for case in ("ds3-fp8", "per-layer", "mixtral-window"):
                    for phase in ("prompt", "decode"):
                        args = ["--backend", "cpu", "--isa", path, "--phase", phase, "--attention", "absorbed", *options]
                        base = self.dump_case(case, *args, "-t", "1")
                        for other in (["-t", "2"], ["--chunk", "7"], ["--chunk", "1", "-t", "2"]):
                            with self.subTest(case, path=path, phase=phase, options=options, other=other):
                                self.assert_same_bits(base, self.dump_case(case, *args, *other))

    def test_neighbours(self):
        """A sequence alone has the bits it has among others."""
        for path in USABLE:
            for phase in ("prompt", "decode"):
                args = ["--backend", "cpu", "--isa", path, "--phase", phase, "--attention", "expanded"]
                ids = ids_of("ds3-fp8")
                together = load_safetensors(self.dump(packed(CASES / "ds3-fp8"), ids, *args))
                for name, alone in ids.items():
                    got = load_safetensors(self.dump(packed(CASES / "ds3-fp8"), {name: alone}, *args))
                    for key, values in got.items():
                        np.testing.assert_array_equal(values, together[key], f"{key} {path} {phase}")


if __name__ == "__main__":
    main()
