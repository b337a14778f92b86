"""Dumps of the golden cases, and comparing them."""
from support import *

BOUND = 1e-4  # of the largest value, for everything in exact mode
DECODER_CASES = decoder_cases()
SHORT_CASES = [name for name in DECODER_CASES if name != "ds3-long"]


@functools.cache
def golden(case):
    """{sequence: {tensor: values}}"""
    sequences = {}
    for key, values in load_safetensors(CASES / case / "expected.safetensors").items():
        sequence, name = key.split("/")
        sequences.setdefault(sequence, {})[name] = values
    return sequences


def ids_of(case):
    return {name: tensors["input_ids"].tolist() for name, tensors in golden(case).items()}


def relative(got, want):
    """The largest difference, as a share of the largest value."""
    return np.abs(got.astype(np.float64) - want).max() / np.abs(want).max()


class DumpCase(Case):
    program = "dsv3"

    def dump(self, model, ids, *args, **options):
        """The path of the written file; ids as given to --ids, or an object for a file."""
        if not isinstance(ids, str):
            path = TEMP / "ids.json"
            path.write_text(json.dumps(ids))
            ids = path
        out = TEMP / f"{time.monotonic_ns()}.safetensors"
        self.addCleanup(out.unlink, missing_ok=True)
        self.assertEqual(self.ok(program(self.program, "dump", model, "--ids", ids, "--out", out, *args, **options)), b"")
        return out

    def dump_case(self, case, *args):
        mtp = ["--mtp"] if "mtp_logits" in golden(case)["a"] else []
        return self.dump(packed(CASES / case), ids_of(case), *mtp, *args)

    def assert_golden(self, case, got):
        for sequence, tensors in golden(case).items():
            at = tensors.get("positions", slice(None))
            for name, want in tensors.items():
                if name in ("input_ids", "positions"):
                    continue
                values = got[f"{sequence}/{name}"]
                values = values[:, at] if name == "hidden" else values[at]
                self.assertEqual(values.shape, want.shape, f"{sequence}/{name}")
                if name.startswith("router_weights."):  # by expert: equal weights have no order
                    layer = name.split(".")[1]
                    order, want_order = (np.argsort(t, 1) for t in (got[f"{sequence}/router_ids.{layer}"], tensors[f"router_ids.{layer}"]))
                    values, want = np.take_along_axis(values, order, 1), np.take_along_axis(want, want_order, 1)
                if name.startswith("router_ids."):
                    np.testing.assert_array_equal(np.sort(values, 1), np.sort(want, 1), f"{sequence}/{name}")
                else:
                    self.assertLess(relative(values, want), BOUND, f"{sequence}/{name}")

    def assert_same_bits(self, first, second):
        self.assertTrue(first.read_bytes() == second.read_bytes(), "the files differ")
