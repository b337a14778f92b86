"""XXH3 of more than 240 bytes with seed 0, 64 and 128 bits, in numpy: whatever a packed file has a hash of is longer."""
import numpy as np

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


def accumulators(data):
    assert len(data) > 240
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
        return accumulate(np.frombuffer(data[-64:], "<u8").reshape(1, 8), words(121, 8))


def merged(acc, at, start):
    mixed = [int(a) for a in acc ^ words(at, 8)]
    products = [mixed[i] * mixed[i + 1] for i in range(0, 8, 2)]
    h = (start + sum((p & MASK) ^ p >> 64 for p in products)) & MASK
    h = (h ^ h >> 37) * 0x165667919E3779F9 & MASK
    return h ^ h >> 32


def xxh3_64(data):
    return merged(accumulators(data), 11, len(data) * P64[0])


def xxh3_128(data):
    """In its canonical form: 16 bytes, the highest first."""
    acc = accumulators(data)
    high, low = merged(acc, 117, ~(len(data) * P64[1]) & MASK), merged(acc, 11, len(data) * P64[0])
    return high.to_bytes(8, "big") + low.to_bytes(8, "big")
