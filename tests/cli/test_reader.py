"""Packed files read by a second reader, which knows docs/format.md and nothing of our code: the same names, types, shapes and
bytes as in the checkpoint they were made from; and what breaks a rule of the format is refused."""
import random

from support import *

sys.path.insert(0, str(ROOT / "tests"))
from pack_reader import Pack, read_json
from xxh3 import xxh3_128, xxh3_64

# (offset, bytes) of every field of a header and of the records of the three tables.
HEADER = [(0, 8), (8, 4), (12, 4), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8), (56, 4), (60, 4), *((at, 8) for at in range(64, 256, 8))]
TENSOR = [(0, 8), (8, 4), (12, 1), (13, 1), (14, 1), (15, 1), (16, 8), (24, 8), (32, 8), (40, 8), (48, 4), (52, 4), (56, 4), (60, 4),
          (64, 8), (72, 8), (80, 8), (88, 8)]
EXTENT = [(0, 4), (4, 4), (8, 8), (16, 8), (24, 8)]
SECTION = [(0, 8), (8, 4), (12, 4), (16, 8), (24, 8)]
# A file can be valid with another value here: types of the same size, a rank with a last dimension of 1, blocks that need as many
# scales, another checksum, a section with a zero after it.
FREE = [(TENSOR, 12), (TENSOR, 13), (TENSOR, 15), (TENSOR, 48), (TENSOR, 52), (EXTENT, 24), (SECTION, 24)]


def parts_of(data):
    return [struct.unpack_from("<QQ", data, at) for at in range(64, 160, 16)]


def made_right(data, names_bytes):
    """The same with the model id and the index checksum of what stands there now."""
    data = bytearray(data)
    (json_at, json_n), (names_at, _), (tensors_at, tensors_n), (extents_at, extents_n), *_ = parts_of(data)
    extents = data[extents_at:extents_at + extents_n]
    hashed = (data[json_at:json_at + json_n] + data[tensors_at:tensors_at + tensors_n] + data[names_at:names_at + names_bytes] +
              b"".join(extents[at + 16:at + 32] for at in range(0, len(extents), 32)))
    if len(hashed) > 240:
        data[40:56] = xxh3_128(bytes(hashed))
    return with_checksum(data)


def with_checksum(data):
    data[32:40] = bytes(8)
    end = min(max(struct.unpack_from("<Q", data, 24)[0], 256), len(data))
    data[32:40] = struct.pack("<Q", xxh3_64(bytes(data[:end])))
    return bytes(data)


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

    def test_every_field(self):
        """Whatever a field is changed to, with checksums made right: ValueError, or it may be so."""
        path, refused = TEMP / "changed.dsv3", 0
        for case in ("kimi-k2-fp8", "ds3-mtp"):
            good = packed(CASES / case).read_bytes()
            parts = parts_of(good)
            tensors = list(struct.iter_unpack("<QIBBBB4QIIIIQQQQ", good[parts[2][0]:sum(parts[2])]))
            names_bytes = sum(t[1] for t in tensors)
            self.assertEqual(made_right(good, names_bytes), good)
            chosen = {0, len(tensors) - 1, *(next((i for i, t in enumerate(tensors) if rule(t)), 0)
                                             for rule in (lambda t: t[4], lambda t: t[13] != 0xFFFFFFFF, lambda t: t[14] > 0))}
            changes = [(HEADER, 0, *field) for field in HEADER]
            changes += [(TENSOR, parts[2][0] + 96 * i, *field) for i in sorted(chosen) for field in TENSOR]
            changes += [(EXTENT, parts[3][0] + 32 * i, *field) for i in (0, 1, parts[3][1] // 32 - 1) for field in EXTENT]
            changes += [(SECTION, parts[4][0] + 32 * i, *field) for i in range(parts[4][1] // 32) for field in SECTION]
            for record, begin, at, n in changes:
                old = int.from_bytes(good[begin + at:begin + at + n], "little")
                highest = 1 << (8 * n - 1)
                for value in {0, 1, (old + 1) % (2 * highest), old - 1 & 2 * highest - 1, old ^ highest, 2 * highest - 1} - {old}:
                    with self.subTest(case=case, table=len(record), begin=begin, at=at, value=value):
                        changed = bytearray(good)
                        changed[begin + at:begin + at + n] = value.to_bytes(n, "little")
                        if record is not HEADER:
                            changed = made_right(changed, names_bytes)
                        elif at != 32:
                            changed = with_checksum(changed)
                        path.write_bytes(changed)
                        refused += self.is_refused(path, (record, at) in FREE)
            for i in range(60):  # any other byte of the index
                rng = random.Random(i)
                changed = bytearray(good)
                for _ in range(rng.choice((1, 1, 3))):
                    changed[rng.randrange(256, struct.unpack_from("<Q", good, 24)[0])] ^= 1 << rng.randrange(8)
                path.write_bytes(changed)
                self.assertTrue(self.is_refused(path))  # its checksum is wrong
                path.write_bytes(made_right(changed, names_bytes))
                self.is_refused(path, True)
            for cut in (0, 255, 256, 4095, len(good) // 2, len(good) - 1):
                path.write_bytes(good[:cut])
                self.assertTrue(self.is_refused(path))
            path.write_bytes(good + bytes(4096))
            self.assertTrue(self.is_refused(path))
        self.assertGreater(refused, 1000)

    def is_refused(self, path, may_be_valid=False):
        try:
            Pack(path).damaged()
        except ValueError:
            return True
        self.assertTrue(may_be_valid)
        return False

    def test_json_and_names(self):
        self.assertEqual(read_json(b' {"config": {"a": [1, "\\u00e9]"]}}\n'), {"config": {"a": [1, "\u00e9]"]}})
        for bad in (b"", b"[]", b"{}", b'{"config": 1}', b'{"config": {}', b'{"config": {}} {}', b'\xef\xbb\xbf{"config": {}}', b'{"config": {}}\0',
                    '{"config": {}}'.encode("utf-16"), b'{"config": {"a": "\xff"}}', b'{"config": {"a": "\\ud800"}}', b'{"config": {}, "config": {}}',
                    b'{"config": {"a": NaN}}', b'{"config": {"a": 1e999}}', b'{"config": {"a": 9223372036854775808}}',
                    b'{"config": {"a": 1' + b"0" * 5000 + b"}}", b'{"config": {"a": ' + b"[" * 100000 + b"]" * 100000 + b"}}",
                    b'{"config": {"a": ' + b"[" * 63 + b"]" * 63 + b"}}", b'{"config": {"a": "\n"}}'):
            with self.subTest(bad[:40]):
                self.assertRaises(ValueError, read_json, bad)
        good = packed(CASES / "ds3-mtp").read_bytes()
        (names_at, names_n), (tensors_at, tensors_n) = parts_of(good)[1:3]
        names_bytes = sum(t[1] for t in struct.iter_unpack("<QI84x", good[tensors_at:tensors_at + tensors_n]))
        for name in (b"\x1b", b"\x7f", b"\xff", b"\xc2\x9b", b"\xe2\x80\xae", b"\xed\xa0\x80", b"\xc0\xaf"):
            for at in (names_at, names_at + names_n - 8):  # a tensor's, a section's
                changed = bytearray(good)
                changed[at:at + len(name)] = name
                (TEMP / "names.dsv3").write_bytes(made_right(changed, names_bytes))
                self.assertRaises(ValueError, Pack, TEMP / "names.dsv3")
        for path in (TEMP, "/dev/null"):
            self.assertRaises(ValueError, Pack, path)

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
