"""A second reader of packed files, written from docs/format.md alone: what the first one reads, this one must read too.

    pack = Pack("model.dsv3")          # or any file of a split model; ValueError for a file that breaks a rule
    pack.tensors["lm_head.weight"]     # Tensor: dtype, shape, data, and scales with their blocks
    pack.damaged()                     # extents whose checksum is wrong"""
import dataclasses, json, math, struct

import numpy as np

DTYPES = ["F32", "BF16", "F16", "F8_E4M3", "I32", "I64"]
BYTES = dict(zip(DTYPES, (4, 2, 2, 1, 4, 8)))
NO_ALIAS = 0xFFFFFFFF

# ---- XXH3-64 of more than 240 bytes, seed 0: everything hashed here is at least 4096 bytes long ------------------------

SECRET = np.frombuffer(bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248e"
    "e03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a"
    "51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8f"
    "f8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"), np.uint8)
P32, P64 = ((0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D),
            (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5))
MASK = (1 << 64) - 1


def words(at, n):
    """n little-endian 64-bit words of the secret from byte `at` on."""
    return np.frombuffer(SECRET[at:at + 8 * n].tobytes(), "<u8")


def xxh3_64(data):
    with np.errstate(over="ignore"):
        acc = np.array([P32[2], P64[0], P64[1], P64[2], P64[3], P32[1], P64[4], P32[0]], np.uint64)
        keys = np.stack([words(8 * i, 8) for i in range(16)])

        def accumulate(stripes, key):
            mixed = stripes ^ key
            added = (mixed & np.uint64(0xFFFFFFFF)) * (mixed >> np.uint64(32)) + stripes[:, [1, 0, 3, 2, 5, 4, 7, 6]]
            return acc + added.sum(axis=0, dtype=np.uint64)

        blocks = (len(data) - 1) // 1024
        for block in np.frombuffer(data[:1024 * blocks], "<u8").reshape(blocks, 16, 8):
            acc = accumulate(block, keys)
            acc = (acc ^ acc >> np.uint64(47) ^ words(128, 8)) * np.uint64(P32[0])
        rest = (len(data) - 1 - 1024 * blocks) // 64
        stripes = np.frombuffer(data[1024 * blocks:1024 * blocks + 64 * rest], "<u8").reshape(rest, 8)
        acc = accumulate(stripes, keys[:rest])
        acc = accumulate(np.frombuffer(data[-64:], "<u8").reshape(1, 8), words(121, 8))
    mixed = [int(a) for a in acc ^ words(11, 8)]
    products = [mixed[i] * mixed[i + 1] for i in range(0, 8, 2)]
    h = (len(data) * P64[0] + sum((p & MASK) ^ p >> 64 for p in products)) & MASK
    h = (h ^ h >> 37) * 0x165667919E3779F9 & MASK
    return h ^ h >> 32


# ---- the file --------------------------------------------------------------------------------------------------------

@dataclasses.dataclass
class Tensor:
    name: str
    dtype: str
    shape: tuple
    data: bytes
    scale_dtype: str = ""  # "": no scales
    blocks: tuple = (0, 0)
    scales: bytes = b""
    extent: int = 0
    alias_of: str = ""  # "": stored under its own name


def expect(rule, what):
    if not rule:
        raise ValueError(what)


def up(at, multiple):
    return -(-at // multiple) * multiple


class File:
    """One file of a model: its header, and the parts of its index."""
    def __init__(self, path):
        with open(path, "rb") as file:
            self.bytes = file.read()
        expect(len(self.bytes) >= 256, "cut off")
        magic, version, header_bytes, file_bytes, self.data_offset, checksum, self.model_id, self.index, self.count = \
            struct.unpack_from("<8sIIQQQ16sII", self.bytes)
        expect(magic == b"DSV3PACK" and version == 1 and header_bytes == 256, "another kind of file")
        expect(self.index < self.count <= 99999 and not any(self.bytes[160:256]), "another version")
        expect(file_bytes == len(self.bytes), "cut off, or something is appended")
        self.parts, self.part_offsets, end = [], [], 256
        for i in range(6):
            offset, n = struct.unpack_from("<QQ", self.bytes, 64 + 16 * i)
            expect(offset == up(end, 64), "a part is not where the one before ends")
            end = offset + n
            self.parts.append(self.bytes[offset:end])
            self.part_offsets.append(offset)
        expect(self.data_offset == up(end, 4096) <= file_bytes, "the data is not where the index ends")
        index = bytearray(self.bytes[:self.data_offset])
        index[32:40] = bytes(8)
        expect(xxh3_64(bytes(index)) == checksum, "the index is damaged")


def read_files(path):
    """All files of the model that `path` is one of, the first first."""
    opened = File(path)
    if opened.count == 1:
        return [opened]
    name, ending = (path[:-5], ".dsv3") if path.endswith(".dsv3") else (path, "")
    expect(name.endswith(f"-{opened.index + 1:05}-of-{opened.count:05}"), "its name is not that of its number")
    files = [File(f"{name[:-15]}-{i + 1:05}-of-{opened.count:05}{ending}") for i in range(opened.count)]
    for i, file in enumerate(files):
        expect((file.model_id, file.index, file.count) == (opened.model_id, i, opened.count), "a file of another model, or renamed")
        expect(i == 0 or file.data_offset == 4096 and not any(file.parts) and not any(file.bytes[256:4096]), "only the first file has an index")
    return files


class Pack:
    def __init__(self, path):
        self.files = read_files(str(path))
        first = self.files[0]
        self.model_id = first.model_id.hex()
        text, self.names, tensors, extents, sections, _ = first.parts
        self.json = json.loads(text)
        self.names_end = 0
        self.extents = self.read_extents(extents)
        self.tensors = self.read_tensors(list(struct.iter_unpack("<QIBBBB4QIIIIQQQQ", tensors)))
        self.sections = self.read_sections(sections, first.part_offsets[5])
        expect(self.names_end == len(self.names), "names that belong to nothing")

    def take_name(self, offset, n):
        expect(offset == self.names_end and 1 <= n <= 1024, "a name is not where the one before ends")
        self.names_end += n
        return self.names[offset:offset + n].decode()

    def read_extents(self, table):
        """The bytes of each extent, and its checksum."""
        extents, file, end = [], 0, self.files[0].data_offset
        for number, reserved, offset, n, checksum in struct.iter_unpack("<IIQQQ", table):
            if extents and number == file + 1 and end == len(self.files[file].bytes):
                file, end = number, 4096
            expect((number, reserved, offset) == (file, 0, end) and n >= 4096 and n % 4096 == 0, "an extent is not where it must be")
            end += n
            expect(end <= len(self.files[file].bytes), "an extent is not in its file")
            extents.append((memoryview(self.files[file].bytes)[offset:end], checksum))
        expect((file + 1, end) == (len(self.files), len(self.files[-1].bytes)), "the extents do not fill the files")
        return extents

    def read_tensors(self, records):
        tensors, names = {}, [self.take_name(*record[:2]) for record in records]
        expect(all(a.encode() < b.encode() for a, b in zip(names, names[1:])), "names out of order")
        places = []  # (extent, offset in it, tensor record)
        for name, (_, _, dtype, rank, flags, scale_dtype, *shape, rows, columns, extent, alias, at, n, scale_at, scale_n) in zip(names, records):
            expect(1 <= rank <= 4 and min(shape) >= 1 and all(d == 1 for d in shape[rank:]) and flags <= 1, f"{name}: shape")
            expect(n == math.prod(shape) * BYTES[DTYPES[dtype]], f"{name}: length")
            tensor = Tensor(name, DTYPES[dtype], tuple(shape[:rank]), b"", extent=extent)
            content = self.extents[extent][0]
            tensor.data = bytes(content[at:at + n])
            if flags:
                tensor.scale_dtype, tensor.blocks = DTYPES[:3][scale_dtype], (rows, columns)
                expect(scale_n == -(-shape[0] // rows) * -(-shape[1] // columns) * BYTES[tensor.scale_dtype], f"{name}: scales")
                tensor.scales = bytes(content[scale_at:scale_at + scale_n])
            if alias != NO_ALIAS:
                tensor.alias_of = names[alias]
                expect(records[alias][2:13] + records[alias][14:] == (dtype, rank, flags, scale_dtype, *shape, rows, columns, extent, at, n,
                                                                      scale_at, scale_n), f"{name}: its target is another tensor")
            else:
                places.append((extent, at, n, scale_at, scale_n, name))
            tensors[name] = tensor
        end_of = [0] * len(self.extents)
        for extent, at, n, scale_at, scale_n, name in sorted(places):
            expect(at == up(end_of[extent], 64) and scale_at == (up(at + n, 64) if scale_n else 0), f"{name}: place")
            end_of[extent] = scale_at + scale_n if scale_n else at + n
        for end, (content, _) in zip(end_of, self.extents):
            expect(0 < end <= len(content) and not any(content[end:]), "an extent's padding")
        return tensors

    def read_sections(self, table, end):
        sections = {}
        for name_offset, name_bytes, reserved, offset, n in struct.iter_unpack("<QIIQQ", table):
            expect(reserved == 0 and offset == (up(end, 64) if sections else end), "a section is not where the one before ends")
            end = offset + n
            sections[self.take_name(name_offset, name_bytes)] = self.files[0].bytes[offset:end]
        return sections

    def checkpoint_files(self):
        """The checkpoint's files by their paths in its folder."""
        folder = "additional_chat_templates"
        return {name.replace(f"{folder}:", f"{folder}/", 1) if name.startswith(f"{folder}:") else name: content
                for name, content in self.sections.items() if name != "provenance.json"}

    def damaged(self):
        return [i for i, (content, checksum) in enumerate(self.extents) if xxh3_64(bytes(content)) != checksum]
