"""dsv3 verify: silent about nothing, and it says which tensors are damaged."""
from support import *
import re

CASE = "ds3-fp8"


class Verify(Case):
    def copy(self):
        out = TEMP / "verify.dsv3"
        shutil.copy(packed(CASES / CASE), out)
        return out

    def flip(self, path, *places):
        with open(path, "r+b") as file:
            for at in places:
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 4]))

    def extents(self, path):
        """(offset, bytes) of every extent, by docs/format.md."""
        raw = path.read_bytes()
        at, n = struct.unpack_from("<QQ", raw, 64 + 16 * 3)
        return [struct.unpack_from("<QQ", raw, offset + 8) for offset in range(at, at + n, 32)]

    def test_good(self):
        out = self.ok(dsv3("verify", packed(CASES / CASE))).decode()
        self.assertRegex(out, r"ds3-fp8\.dsv3: [\d.]+ MB of data are as they were written(, .*/s)?\n")
        result = dsv3("verify", "-q", packed(CASES / CASE))
        self.assertEqual((self.ok(result), result.stderr), (b"", b""))

    def test_damage(self):
        path = self.copy()
        extents = self.extents(path)
        self.flip(path, extents[3][0], sum(extents[7]) - 1, extents[7][0])
        result = dsv3("verify", path)
        self.assertEqual(result.returncode, 1)
        lines = sorted(result.stdout.decode().splitlines())
        self.assertEqual([re.match(r'extent (\d+) \("model\..*"\): got checksum', line).group(1) for line in lines], ["3", "7"])
        last = result.stderr.decode().splitlines()[-1]
        self.assertRegex(last, rf"dsv3: verify .*: 2 of {len(extents)} extents, one of them: extent [37] .*the file is damaged; get it")

    def test_an_expert_is_named(self):
        path = self.copy()
        names = ("gate_proj", "up_proj", "down_proj")
        for offset, n in self.extents(path):
            self.flip(path, offset + n // 2)
        lines = dsv3("verify", "-q", path).stdout.decode().splitlines()
        experts = [line for line in lines if "mlp.experts.5." in line]
        self.assertTrue(experts)
        for line in experts:
            for name in names:
                self.assertIn(f"mlp.experts.5.{name}.weight\"", line)
        self.assertEqual(len(lines), min(101, len(self.extents(path))))
        if len(self.extents(path)) > 100:
            self.assertEqual(lines[100], f"and {len(self.extents(path)) - 100} more")

    def test_index_and_other_files(self):
        path = self.copy()
        self.flip(path, 300)
        self.fails(dsv3("verify", path), "index: got checksum", "damaged")
        self.fails(dsv3("verify", TEMP / "absent.dsv3"), "absent.dsv3")
        self.fails(dsv3("verify", ROOT / "README.md"), "not a packed file")
        self.fails(dsv3("verify", TEMP), "a folder")
        self.assertEqual(dsv3("verify").returncode, 2)


if __name__ == "__main__":
    main()
