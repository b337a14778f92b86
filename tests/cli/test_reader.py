"""Packed files read by a second reader, which knows docs/format.md and nothing of our code: the same names, types, shapes and
bytes as in the checkpoint they were made from."""
from support import *

sys.path.insert(0, str(ROOT / "tests"))
from pack_reader import BYTES, Pack


class Reader(Case):
    def test_every_golden_case(self):
        cases = sorted(path.parent for path in CASES.glob("*/config.json") if list(path.parent.glob("model*.safetensors")))
        self.assertGreater(len(cases), 15)
        for folder in [*cases, DEMO]:
            with self.subTest(folder.name):
                self.compare(Checkpoint(folder).tensors, folder, Pack(packed(folder)))

    def compare(self, source, folder, pack):
        for name, t in pack.tensors.items():
            dtype, shape, data = source.pop(name)
            self.assertEqual((t.dtype, t.shape), (dtype, tuple(shape)), name)
            self.assertTrue(t.data == data, name)
            if t.scale_dtype:
                dtype, shape, data = source.pop(name + "_scale_inv")
                grid = tuple(-(-n // block) for n, block in zip(t.shape, t.blocks))
                self.assertEqual((t.scale_dtype, grid), (dtype, tuple(shape)), name)
                self.assertTrue(t.scales == data, name)
            if t.alias_of:
                self.assertTrue(pack.tensors[t.alias_of].data == t.data, name)
        self.assertEqual(list(source), [])  # nothing is left out
        self.assertEqual(pack.damaged(), [])
        self.assertEqual(pack.json["config"]["model_type"], json.loads((folder / "config.json").read_text())["model_type"])
        self.assertTrue(json.loads(pack.sections["provenance.json"]))
        for path, content in pack.checkpoint_files().items():
            self.assertTrue(content == (folder / path).read_bytes(), path)
        self.assertIn("config.json", pack.checkpoint_files())

    def test_named_templates(self):
        folder = TEMP / "named-templates"
        shutil.copytree(CASES / "ds3-f32", folder)
        templates = {"additional_chat_templates/tool_use.jinja": b"\xef\xbb\xbftools\r\n", "additional_chat_templates/rag.v2:x.jinja": b""}
        (folder / "additional_chat_templates").mkdir()
        for path, content in templates.items():
            (folder / path).write_bytes(content)
        pack = Pack(packed(folder))
        self.assertEqual({path: content for path, content in pack.checkpoint_files().items() if "/" in path}, templates)
        self.compare(Checkpoint(folder).tensors, folder, pack)

    def test_a_split_model(self):
        folder = pathlib.Path(tempfile.mkdtemp(dir=TEMP))
        self.ok(program("dsv3-convert", "-q", CASES / "ds3-fp8", folder / "m.dsv3", "--split-size", "500000"))
        files, whole = sorted(folder.iterdir()), Pack(packed(CASES / "ds3-fp8"))
        self.assertGreater(len(files), 3)
        for path in files:
            pack = Pack(path)
            self.assertEqual((len(pack.files), pack.model_id, list(pack.tensors)), (len(files), whole.model_id, list(whole.tensors)))
            self.compare(Checkpoint(CASES / "ds3-fp8").tensors, CASES / "ds3-fp8", pack)
        # Files that are not what their names say, and a flipped bit in one that is not the first.
        first, second, third = (path.read_bytes() for path in files[:3])
        files[1].write_bytes(third)
        self.assertRaises(ValueError, Pack, files[0])
        files[1].write_bytes(second[:4096] + bytes([second[4096] ^ 1]) + second[4097:])
        self.assertEqual(len(Pack(files[2]).damaged()), 1)
        files[1].rename(folder / "m-00009-of-00009.dsv3")
        self.assertRaises(ValueError, Pack, folder / "m-00009-of-00009.dsv3")
        self.assertRaises(FileNotFoundError, Pack, files[0])

    def test_numbers(self):
        """An element times the scale of its block is what the converter itself computes from both."""
        t = next(t for t in Pack(packed(CASES / "ds3-fp8")).tensors.values() if t.scale_dtype)
        name, folder = t.name, TEMP / "as-f32.dsv3"
        self.ok(program("dsv3-convert", "-q", "--dtype", "f32", CASES / "ds3-fp8", folder))
        expected = np.frombuffer(Pack(folder).tensors[name].data, "<f4").reshape(t.shape)
        codes = np.frombuffer(t.data, np.uint8).reshape(t.shape).astype(np.int64)
        exponent, mantissa = codes >> 3 & 15, codes & 7
        value = np.where(exponent == 0, mantissa * 2.0 ** -9, (8 + mantissa) * 2.0 ** (exponent - 10.0)) * np.where(codes & 128, -1, 1)
        scales = np.frombuffer(t.scales, {"F32": "<f4", "F16": "<f2"}[t.scale_dtype]).reshape([-(-n // b) for n, b in zip(t.shape, t.blocks)])
        rows, columns = (np.arange(n) // block for n, block in zip(t.shape, t.blocks))
        self.assertTrue(np.array_equal(expected, (value * scales[np.ix_(rows, columns)]).astype("<f4")))


if __name__ == "__main__":
    main()
