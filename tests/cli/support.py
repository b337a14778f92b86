"""What the command-line tests share: the programs under test, checkpoints to feed them, and a reader and a writer of
safetensors. Every test file runs as `python3 test_X.py BIN_DIR [unittest arguments]`, or with BIN_DIR in DSV3_BIN.

Only the standard library and numpy are used; the programs are driven through processes, as users drive them."""
import atexit, functools, json, os, pathlib, shutil, signal, struct, subprocess, sys, tempfile, time, unittest

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else os.environ["DSV3_BIN"]).resolve()
DEMO = ROOT / "examples/demo-model"
EXPECTED = json.loads((DEMO / "expected.json").read_text())
CASES = ROOT / "tests/golden/cases"
TOKENIZERS = ROOT / "tests/golden/tokenizers"

# Threads that wait give their core away: tests run beside other work.
os.environ["OMP_WAIT_POLICY"] = "passive"

TEMP = pathlib.Path(tempfile.mkdtemp(prefix="dsv3-cli-"))
atexit.register(shutil.rmtree, TEMP, ignore_errors=True)


def main():
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]])


# ---- processes -------------------------------------------------------------------------------------------------------

def program(name, *args, stdin=b"", **options):
    """Runs a program to its end; .stdout and .stderr are bytes."""
    return subprocess.run([BIN / name, *map(str, args)], input=stdin, stdout=options.pop("stdout", subprocess.PIPE),
                          stderr=subprocess.PIPE, timeout=600, **options)


def dsv3(*args, **options):
    return program("dsv3", *args, **options)


def start(*args, **options):
    """A dsv3 process that goes on while the test looks at it."""
    return subprocess.Popen([BIN / "dsv3", *map(str, args)], bufsize=0, **options)


def wait_for_handler(process, number=signal.SIGINT):
    """Until the process catches the signal; before, the signal would just kill it."""
    for _ in range(6000):
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
        if caught >> (number - 1) & 1:
            return
        time.sleep(0.01)
    raise AssertionError("the process never caught the signal")


def small_files(bytes_allowed):
    """For preexec_fn: no file can grow beyond so many bytes, which is what a full disk looks like."""
    import resource
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_allowed, bytes_allowed))


class Case(unittest.TestCase):
    def ok(self, result):
        """The output of a run that must have succeeded."""
        self.assertEqual(result.returncode, 0, result.stderr.decode(errors="replace"))
        return result.stdout

    def fails(self, result, *parts, code=1, name="dsv3"):
        """Nothing on standard output, and one line on standard error that holds all the parts."""
        message = result.stderr.decode(errors="replace")
        if b"OMP: Error #179" in result.stderr:
            self.skipTest("LLVM's OpenMP makes a shared-memory file of its own, which small_files() forbids")
        self.assertEqual(result.returncode, code, message)
        self.assertEqual(result.stdout or b"", b"")
        self.assertEqual((message.count("\n"), message[-1:]), (1, "\n"), message)
        self.assertTrue(message.startswith(name + ": "), message)
        for part in parts:
            self.assertIn(str(part), message)


# ---- checkpoints -----------------------------------------------------------------------------------------------------

@functools.cache
def packed(folder):
    """The checkpoint's packed file, converted at the first call."""
    out = TEMP / f"{pathlib.Path(folder).name}.dsv3"
    result = program("dsv3-convert", folder, out)
    assert result.returncode == 0, result.stderr.decode()
    return out


def load_safetensors(path):
    raw = pathlib.Path(path).read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8:8 + header_bytes])
    header.pop("__metadata__", None)
    tensors = {}
    for name, t in header.items():
        begin, end = (8 + header_bytes + offset for offset in t["data_offsets"])
        dtype = {"F32": "<f4", "I64": "<i8"}[t["dtype"]]
        tensors[name] = np.frombuffer(raw[begin:end], dtype).reshape(t["shape"])
    return tensors


def decoder_cases():
    """Names of the golden cases that hold logits and hidden states of token sequences."""
    return sorted(path.parent.name for path in CASES.glob("*/expected.safetensors") if "a/input_ids" in load_safetensors(path))


class Checkpoint:
    """A copy of a checkpoint's folder whose tensors can be changed: tensors[name] = [dtype, shape, bytes]."""

    def __init__(self, source):
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=TEMP))
        shutil.copytree(source, self.folder, dirs_exist_ok=True)
        self.config = json.loads((self.folder / "config.json").read_text())
        self.tensors = {}
        for shard in sorted(self.folder.glob("model*.safetensors")):
            raw = shard.read_bytes()
            (header_bytes,) = struct.unpack_from("<Q", raw)
            for name, t in json.loads(raw[8:8 + header_bytes]).items():
                if name != "__metadata__":
                    begin, end = (8 + header_bytes + offset for offset in t["data_offsets"])
                    self.tensors[name] = [t["dtype"], t["shape"], raw[begin:end]]
            shard.unlink()
        (self.folder / "model.safetensors.index.json").unlink(missing_ok=True)

    def write(self):
        header, end = {}, 0
        for name, (dtype, shape, data) in self.tensors.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
            end += len(data)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        (self.folder / "config.json").write_text(json.dumps(self.config))
        (self.folder / "model.safetensors").write_bytes(
            struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in self.tensors.values()))
        return self.folder
