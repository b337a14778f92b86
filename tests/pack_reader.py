"""A second reader of packed files, written from docs/format.md alone: what the first one reads, this one must read too, and
what breaks a rule, both must refuse.

    pack = Pack("model.dsv3")          # or any file of a split model; ValueError for one that breaks a rule, OSError for none
    pack.tensors["lm_head.weight"]     # Tensor: dtype, shape, data, and scales with their blocks
    pack.damaged()                     # extents whose checksum is wrong"""
import dataclasses, json, math, os, re, struct

from xxh3 import xxh3_64, xxh3_128

DTYPES = ["F32", "BF16", "F16", "F8_E4M3", "I32", "I64"]
BYTES = dict(zip(DTYPES, (4, 2, 2, 1, 4, 8)))
NO_ALIAS, LARGEST = 0xFFFFFFFF, 1 << 56
CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SECTIONS = re.compile(r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|chat_template|provenance)\.json"
                      r"|tiktoken\.model|chat_template\.jinja|additional_chat_templates:.+\.jinja")


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


def rows(layout, table):
    expect(len(table) % struct.calcsize(layout) == 0, "a table is not of whole records")
    return list(struct.iter_unpack(layout, table))


def read_json(block):
    """The object of a JSON block, by the rules for one."""
    expect(len(block) <= 64 << 20, "JSON: too long")
    text, depth = block.decode(), 0
    for c in re.sub(r'"(\\.|[^"\\])*"', "", text, flags=re.DOTALL):
        depth += (c in "[{") - (c in "]}")
        expect(depth <= 64, "JSON: too deep")

    def members(pairs):
        expect(len(dict(pairs)) == len(pairs), "JSON: a key twice")
        return dict(pairs)

    def count(value):
        return 1 + sum(map(count, value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()))

    def integer(digits):
        expect(len(digits) <= 20 and -1 << 63 <= int(digits) < 1 << 63, "JSON: an integer of more than 64 bits")
        return int(digits)

    def number(digits):
        expect(math.isfinite(float(digits)), "JSON: a number beyond double")
        return float(digits)

    value = json.loads(text, object_pairs_hook=members, parse_int=integer, parse_float=number, parse_constant=lambda _: expect(False, "JSON: no number"))
    expect(isinstance(value, dict) and isinstance(value.get("config"), dict) and count(value) <= 4 << 20, "JSON: not a model's")
    json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair
    return value


class File:
    """One file of a model: its header, and the parts of its index."""
    def __init__(self, path):
        expect(os.path.isfile(path) or not os.path.exists(path), "no file")
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
            expect(n <= min(file_bytes, 1 << 32) and offset == up(end, 64), "a part is not where the one before ends")
            end = offset + n
            self.parts.append(self.bytes[offset:end])
            self.part_offsets.append(offset)
        expect(self.data_offset == up(end, 4096) <= min(file_bytes, 1 << 32), "the data is not where the index ends")
        expect(xxh3_64(self.bytes[:32] + bytes(8) + self.bytes[40:self.data_offset]) == checksum, "the index is damaged")

    def check_gaps(self, pieces):
        """Of the index, which the header and `pieces`, (offset, bytes) in order, leave over."""
        end = 256
        for offset, n in [*pieces, (self.data_offset, 0)]:
            expect(not any(self.bytes[end:offset]), "bytes that belong to nothing")
            end = offset + n


def read_files(path):
    """All files of the model that `path` is one of, the first first."""
    opened = File(path)
    if opened.count == 1:
        return [opened]
    name, ending = (path[:-5], ".dsv3") if path.endswith(".dsv3") else (path, "")
    expect(name.endswith(f"-{opened.index + 1:05}-of-{opened.count:05}"), "its name is not that of its number")
    files = []
    for i in range(opened.count):
        file = File(f"{name[:-15]}-{i + 1:05}-of-{opened.count:05}{ending}")
        expect((file.model_id, file.index, file.count) == (opened.model_id, i, opened.count), "a file of another model, or renamed")
        expect(i == 0 or file.data_offset == 4096 and not any(file.parts) and not any(file.bytes[256:4096]), "only the first file has an index")
        files.append(file)
    return files


class Pack:
    def __init__(self, path):
        self.files = read_files(str(path))
        first = self.files[0]
        self.model_id = first.model_id.hex()
        text, self.names, tensors, extents, sections, section_data = first.parts
        self.json = read_json(text)
        self.names_end = 0
        self.extents = self.read_extents(extents)
        self.tensors = self.read_tensors(rows("<QIBBBB4QIIIIQQQQ", tensors))
        hashed = text + tensors + self.names[:self.names_end] + b"".join(extents[at + 16:at + 32] for at in range(0, len(extents), 32))
        expect(len(hashed) > 240 and xxh3_128(hashed) == first.model_id, "another model's id")
        places, self.sections = self.read_sections(sections, first.part_offsets[5])
        expect(self.names_end == len(self.names), "names that belong to nothing")
        expect(sum(places[-1] if places else (first.part_offsets[5], 0)) == first.part_offsets[5] + len(section_data), "section data that belongs to nothing")
        first.check_gaps([*zip(first.part_offsets[:5], map(len, first.parts)), *places])

    def take_names(self, records):
        names = []
        for offset, n, *_ in records:
            expect(offset == self.names_end and 1 <= n <= 1024, "a name is not where the one before ends")
            self.names_end += n
            names.append(self.names[offset:offset + n].decode())
            expect(self.names_end <= len(self.names) and not CONTROLS.search(names[-1]), "a name that cannot be printed")
        expect(all(a.encode() < b.encode() for a, b in zip(names, names[1:])), "names out of order")
        return names

    def read_extents(self, table):
        """The bytes of each extent, and its checksum."""
        extents, file, end = [], 0, self.files[0].data_offset
        for number, reserved, offset, n, checksum in rows("<IIQQQ", table):
            if extents and number == file + 1 < len(self.files) and end == len(self.files[file].bytes):
                file, end = number, 4096
            expect((number, reserved, offset) == (file, 0, end) and n >= 4096 and n % 4096 == 0, "an extent is not where it must be")
            end += n
            expect(end <= len(self.files[file].bytes), "an extent is not in its file")
            extents.append((memoryview(self.files[file].bytes)[offset:end], checksum))
        expect((file + 1, end) == (len(self.files), len(self.files[-1].bytes)), "the extents do not fill the files")
        return extents

    def read_tensors(self, records):
        expect(len(records) < NO_ALIAS, "too many tensors")
        tensors, names, places = {}, self.take_names(records), []
        for name, (_, _, dtype, rank, flags, scale_dtype, *shape, height, width, extent, alias, at, n, scale_at, scale_n) in zip(names, records):
            expect(dtype < len(DTYPES) and 1 <= rank <= 4 and flags <= 1 and extent < len(self.extents), f"{name}: type, rank, flags or extent")
            expect(min(shape) >= 1 and all(d == 1 for d in shape[rank:]), f"{name}: shape")
            expect(n == math.prod(shape) * BYTES[DTYPES[dtype]] <= LARGEST, f"{name}: length")
            tensor = Tensor(name, DTYPES[dtype], tuple(shape[:rank]), b"", extent=extent)
            if flags:
                expect(rank == 2 and dtype <= 3 and scale_dtype <= 2 and 1 <= min(height, width) and max(height, width) < 1 << 31, f"{name}: scales")
                tensor.scale_dtype, tensor.blocks = DTYPES[scale_dtype], (height, width)
                expect(scale_n == -(-shape[0] // height) * -(-shape[1] // width) * BYTES[tensor.scale_dtype], f"{name}: length of scales")
            else:
                expect(not any((scale_dtype, height, width, scale_at, scale_n)), f"{name}: scales that it does not have")
            if alias == NO_ALIAS:
                places.append((extent, at, n, scale_at, scale_n, name))
            else:
                expect(alias < len(records) and records[alias][13] == NO_ALIAS, f"{name}: no target")
                tensor.alias_of = names[alias]
                expect(records[alias][2:13] + records[alias][14:] == (dtype, rank, flags, scale_dtype, *shape, height, width, extent, at, n,
                                                                      scale_at, scale_n), f"{name}: its target is another tensor")
            tensors[name] = tensor
        ends = [0] * len(self.extents)
        for extent, at, n, scale_at, scale_n, name in sorted(places):
            content, end = self.extents[extent][0], ends[extent]
            expect(at == up(end, 64) and scale_at == (up(at + n, 64) if scale_n else 0), f"{name}: place")
            ends[extent] = scale_at + scale_n if scale_n else at + n
            expect(ends[extent] <= len(content), f"{name}: it does not fit its extent")
            tensors[name].data, tensors[name].scales = bytes(content[at:at + n]), bytes(content[scale_at:scale_at + scale_n])
            expect(not any(content[end:at]) and not any(content[at + n:scale_at]), f"{name}: padding")
        for end, (content, _) in zip(ends, self.extents):
            expect(end > 0 and not any(content[end:]), "an extent's padding")
        for tensor in tensors.values():
            if tensor.alias_of:
                tensor.data, tensor.scales = tensors[tensor.alias_of].data, tensors[tensor.alias_of].scales
        return tensors

    def read_sections(self, table, end):
        """(offset, bytes) of each, and the bytes by name."""
        places, records = [], rows("<QIIQQ", table)
        names = self.take_names(records)
        for name, (_, _, reserved, offset, n) in zip(names, records):
            expect(SECTIONS.fullmatch(name) and "/" not in name, "a section of unknown name")
            expect(reserved == 0 and offset == (up(end, 64) if places else end), "a section is not where the one before ends")
            end = offset + n
            expect(end <= self.files[0].data_offset, "a section is not in the index")
            places.append((offset, n))
        return places, {name: self.files[0].bytes[offset:offset + n] for name, (offset, n) in zip(names, places)}

    def checkpoint_files(self):
        """The checkpoint's files by their paths in its folder."""
        folder = "additional_chat_templates"
        return {name.replace(f"{folder}:", f"{folder}/", 1) if name.startswith(f"{folder}:") else name: content
                for name, content in self.sections.items() if name != "provenance.json"}

    def damaged(self):
        return [i for i, (content, checksum) in enumerate(self.extents) if xxh3_64(bytes(content)) != checksum]
