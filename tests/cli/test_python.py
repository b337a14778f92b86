"""bindings/python/dsv3.py: the C API's structs to the byte, and what the module does against what the programs do."""
import ctypes
import re

from support import *

sys.path.append(str(ROOT / "bindings/python"))
import dsv3 as binding

LIBRARY = BIN.parent / "lib" / f"libdsv3.so.{binding.ABI_VERSION}"
SANITIZED = b"__asan_init" in LIBRARY.read_bytes() or b"__tsan_init" in LIBRARY.read_bytes()
GREEDY = EXPECTED["greedy"]


def setUpModule():
    if SANITIZED:
        raise unittest.SkipTest("a sanitizer's library wants a sanitizer's program")
    binding.load(LIBRARY)


class Loss(unittest.TestCase):
    def test_against_the_golden(self):
        want = load_safetensors(CASES / "load-balancing/expected.safetensors")
        layers = [np.ascontiguousarray(want[f"router_logits.{i}"], "<f4") for i in range(3)]
        rows, experts = layers[0].shape
        pointers = (ctypes.POINTER(ctypes.c_float) * 3)(*(l.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) for l in layers))
        mask = np.ascontiguousarray(want["attention_mask"].ravel(), np.uint8)
        for name, given in (("loss", None), ("loss_masked", mask.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))):
            loss = ctypes.c_double()
            function = ctypes.CDLL(str(LIBRARY)).dsv3_load_balancing_loss
            self.assertEqual(function(pointers, 3, rows, experts, 3, given, ctypes.byref(loss)), 0)
            self.assertAlmostEqual(loss.value / float(want[name][0]), 1, delta=1e-6)


class Layout(unittest.TestCase):
    def test_structs_and_constants_are_the_header_s(self):
        lines, expected = [], []
        for name, struct in binding.STRUCTS.items():
            lines.append(f'printf("%zu\\n", sizeof({name}));')
            expected.append(ctypes.sizeof(struct))
            for field, _ in struct._fields_:
                lines.append(f'printf("%zu\\n", offsetof({name}, {field}));')
                expected.append(getattr(struct, field).offset)
        for name in ("PARSE_ADDED BOS BOS_AUTO SKIP_SPECIAL CONTINUES KEEP_HIDDEN KEEP_ROUTING ATTENTION_EXPANDED GEMM_FP8_UE8M0 KV_BF16 PHASE_DECODE "
                     "INVALID_ARGUMENT BUSY CANCELLED DEVICE INTERNAL ABI_VERSION").split():
            lines.append(f'printf("%zu\\n", (size_t)DSV3_{name});')
            expected.append(getattr(binding, name))
        source = TEMP / "layout.c"
        source.write_text('#include <stdio.h>\n#include "dsv3.h"\nint main(void) {\n' + "\n".join(lines) + "\nreturn 0; }\n")
        subprocess.run(["cc", "-I", ROOT, source, "-o", TEMP / "layout"], check=True)
        out = subprocess.run([TEMP / "layout"], capture_output=True, check=True).stdout
        self.assertEqual(list(map(int, out.split())), expected)

    def test_every_function_is_one_of_the_header_s(self):
        header = set(re.findall(r"\b(dsv3_\w+)\(", (ROOT / "dsv3.h").read_text()))
        self.assertEqual(set(binding._ARGUMENTS) - header, set())


class Examples(Case):
    context = 0  # of a session without options

    @classmethod
    def setUpClass(cls):
        with binding.Model(packed(DEMO)) as model, model.session() as session:
            cls.context = session.context

    def both(self, *arguments):
        """What the example in C and the one in Python did: exit code, text, and message without the program's name."""
        environment = {**os.environ, "LD_LIBRARY_PATH": str(LIBRARY.parent)}
        for name, command in (("embed", [BIN / "embed"]), ("generate.py", ["/usr/bin/python3", ROOT / "examples/generate.py"])):
            result = subprocess.run([*command, *(a if isinstance(a, bytes) else str(a) for a in arguments)], capture_output=True, timeout=600, env=environment)
            yield result.returncode, result.stdout, result.stderr.decode().replace(name, "PROGRAM", 1)

    def test_the_same_text_as_c(self):
        row = GREEDY[0]
        for arguments in ([row["prompt"], 24], [row["prompt"], 24, 1], [row["prompt"], 24, 2], [row["prompt"]]):
            with self.subTest(arguments):
                c = self.ok(program("embed", packed(DEMO), *arguments))
                python = subprocess.run(["/usr/bin/python3", ROOT / "examples/generate.py", packed(DEMO), *map(str, arguments)],
                                        capture_output=True, timeout=600, env={**os.environ, "LD_LIBRARY_PATH": str(LIBRARY.parent)})
                self.assertEqual(self.ok(python), c)
        seeds = {program("embed", packed(DEMO), row["prompt"], 24, seed).stdout for seed in (1, 2, 3)}
        self.assertEqual(len(seeds), 3)

    def test_prompts_and_a_full_context(self):
        longest = " a" * (self.context - 1)  # ids: one less than the context with, or without, a beginning
        for prompt, n_tokens, code in ((longest, 9, 0), (longest + " a" * 9, 9, 1), (longest + " a" * 9, 0, 0), ("", 1, None), ("caf\xc3\xa9", 3, 0), ("\xff", 3, 0)):
            with self.subTest(prompt=prompt[:9], n_tokens=n_tokens):
                c, python = self.both(packed(DEMO), prompt.encode("latin-1"), n_tokens)
                self.assertEqual(python, c)
                self.assertEqual(c[0], c[0] if code is None else code, c)

    def test_failures(self):
        for arguments, code, part in (((TEMP / "absent.dsv3", "a"), 1, "absent.dsv3"), ((packed(CASES / "ds3-f32"), "a"), 1, "tokenizer"), ((), 2, "usage"),
                                      (("m",), 2, "usage"), (("m", "a", 1, 1, 1), 2, "usage"), (("m", "a", 2**31), 2, 'N_TOKENS: got "2147483648"'),
                                      (("m", "a", 1, 2**64), 2, 'SEED: got "18446744073709551616"'),
                                      *((("m", "a", bad), 2, "N_TOKENS: got") for bad in ("", "x", "-1", "+1", " 1", "1 ", "1_0", "1.0", "0x1", "٣")),
                                      *((("m", "a", 1, bad), 2, "SEED: got") for bad in ("", "-1", "1e3"))):
            with self.subTest(arguments):
                c, python = self.both(*arguments)
                self.assertEqual(python, c)
                self.assertEqual((c[0], c[1]), (code, b""))
                self.assertIn(part, c[2])


class Module(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = binding.Model(packed(DEMO))

    @classmethod
    def tearDownClass(cls):
        cls.model.close()

    def refused(self, status, part, function, *args, **options):
        with self.assertRaises(binding.Error) as caught:
            function(*args, **options)
        self.assertEqual(caught.exception.status, status)
        self.assertIn(part, str(caught.exception))

    def test_tokenizer(self):
        for row in GREEDY:
            ids = self.model.tokenize(row["prompt"])
            self.assertEqual(ids, row["ids"])
            self.assertEqual(self.model.detokenize(ids, binding.SKIP_SPECIAL).decode(), row["prompt"])
        self.assertEqual(self.model.detokenize(row["new_ids"]).decode(), row["text"])
        self.assertEqual(self.model.tokenize("", 0), [])
        self.assertEqual(self.model.detokenize([]), b"")
        self.refused(binding.INVALID_ARGUMENT, "", self.model.detokenize, [-1])

    def test_info(self):
        info = self.model.info
        self.assertEqual((info["architecture"], info["vocab_size"]), ("deepseek_v3", json.loads(self.model.describe())["config"]["vocab_size"]))
        self.assertEqual(self.model.sampling["temperature"], 0.7)
        self.assertTrue(binding.version().startswith("dsv3 "))

    def test_sampling_options(self):
        with self.model.session() as session:
            ids = self.model.tokenize("It was")
            session.eval(ids)
            last = len(ids) - 1
            self.assertEqual(session.sample(last, temperature=0, logit_bias={77: 1e6}), 77)
            self.assertNotEqual(session.sample(last, temperature=0, logit_bias={ids[0]: 1e3}, presence_penalty=1e6), ids[0])
            self.refused(binding.INVALID_ARGUMENT, "logit_bias", session.sample, last, logit_bias={-1: 1})
            self.refused(binding.INVALID_ARGUMENT, "typical_p", session.sample, last, typical_p=2)

    def test_generate(self):
        for row in GREEDY[:2]:
            with self.model.session() as session:
                self.assertEqual("".join(session.generate(row["prompt"], len(row["new_ids"]), temperature=0)), row["text"])
                self.assertEqual(session.tokens(), self.model.tokenize(row["prompt"]) + row["new_ids"][:-1])
                self.assertEqual(session.stats["decode_tokens"], len(row["new_ids"]) - 1)

    def test_logits_fork_save_and_load(self):
        ids = self.model.tokenize(GREEDY[0]["prompt"])
        with self.model.session(max_seqs=2, context=64) as session, self.model.session(context=64) as other:
            session.eval(ids)
            row = session.logits(len(ids) - 1)
            self.assertEqual((row.dtype, row.shape), (np.float32, (self.model.info["vocab_size"],)))
            self.assertEqual(int(row.argmax()), GREEDY[0]["new_ids"][0])
            self.refused(binding.INVALID_ARGUMENT, "token 0", session.logits, 0)
            session.fork(0, 1)
            session.eval([5, 5], seq=[0, 1])
            np.testing.assert_array_equal(session.logits(0), session.logits(1))
            session.truncate(len(ids), seq=1)
            self.assertEqual(session.tokens(1), ids)
            session.truncate(0, seq=1)
            session.save(TEMP / "saved")
            for saved in (session.save(), TEMP / "saved"):
                other.load(saved)
                session.truncate(len(ids) + 1), other.eval([7]), session.eval([7])
                np.testing.assert_array_equal(session.logits(0), other.logits(0))
            self.refused(binding.CORRUPT, "too short", other.load, b"")
            self.refused(binding.CANCELLED, "progress", other.load, TEMP / "saved", progress=lambda done, total: True)
            self.refused(binding.NOT_FOUND, "absent", other.load, TEMP / "absent")

    def test_cancel_progress_and_kept(self):
        seen = []
        with self.model.session(max_batch_tokens=4, progress=lambda done, total: seen.append((done, total))) as session:
            session.eval([1] * 9)
            self.assertEqual(seen, [(4, 9), (8, 9), (9, 9)])
            session.cancel()
            self.refused(binding.CANCELLED, "cancelled", session.eval, [1])
        with self.model.session(keep=binding.KEEP_HIDDEN | binding.KEEP_ROUTING) as session:
            session.eval([1, 2])
            self.assertEqual(session.kept("hidden.0", 1).shape, (self.model.info["hidden_size"],))
            self.refused(binding.NOT_FOUND, "absent", session.kept, "absent", 0)

    def test_what_callbacks_raise(self):
        class Mine(Exception):
            pass

        def fail(*_):
            raise Mine

        self.assertRaises(Mine, binding.Model, packed(DEMO), verify=True, progress=fail)
        with self.model.session(max_batch_tokens=4, progress=fail) as session:
            self.assertRaises(Mine, session.eval, [1] * 9)
            self.assertEqual(session.length(), 0)
            session.save(TEMP / "raises")
            self.assertRaises(Mine, session.load, TEMP / "raises", fail)
            self.refused(binding.INVALID_ARGUMENT, "got id -1", session.eval, [-1])  # and not once more
        self.assertRaises(Mine, binding.Model, packed(DEMO), log=fail)
        function = binding._log(fail)
        function(None, 1, b"text")
        self.assertRaises(Mine, binding._check, binding.OK)
        binding._check(binding.OK)

    def test_numbers_beyond_their_c_type(self):
        with self.model.session(max_seqs=2) as session:
            session.eval([1, 2, 3])
            for call in (lambda n: session.truncate(n), lambda n: session.truncate(0, n), lambda n: session.fork(n, 1),
                         lambda n: session.fork(0, n + 1), lambda n: session.fork(0, 1, n), lambda n: session.length(n),
                         lambda n: session.tokens(n), lambda n: session.logits(n + 2), lambda n: session.mtp_logits(n),
                         lambda n: session.kept("final", n), lambda n: session.sample(n + 2), lambda n: session.sample(2, top_k=n),
                         lambda n: session.sample(2, logit_bias={n: 1}), lambda n: session.eval([n]), lambda n: session.eval([1], n),
                         lambda n: session.eval([1], phase=n), lambda n: self.model.is_end_token(n), lambda n: self.model.tokenize("a", n),
                         lambda n: self.model.detokenize([1], n), lambda n: self.model.detokenize([n]),
                         lambda n: self.model.session(context=n + 8), lambda n: self.model.session(keep=n),
                         lambda n: binding.Model(packed(DEMO), verify=n)):
                for n in (2**32, -2**32, 2**64):
                    with self.assertRaisesRegex(ValueError, "beyond 32 bits"):
                        call(n)
                self.assertRaises(TypeError, call, 0.5)
            self.assertEqual((session.length(), session.length(1)), (3, 0))

    def test_zero_bytes_in_texts(self):
        with self.model.session() as session:
            for call in (lambda: binding.Model("a\0b"), lambda: binding.Model(packed(DEMO), backend="cpu\0x"),
                         lambda: binding.Model(packed(DEMO), isa="auto\0x"), lambda: session.kept("final\0x", 0),
                         lambda: session.save("a\0b"), lambda: session.load("a\0b")):
                self.assertRaisesRegex(ValueError, "zero byte", call)

    def test_open_and_close(self):
        self.refused(binding.NOT_FOUND, "absent", binding.Model, TEMP / "absent")
        self.refused(binding.CANCELLED, "", binding.Model, packed(DEMO), verify=True, progress=lambda done, total: True)
        self.refused(binding.UNSUPPORTED, "nothing", binding.Model, packed(DEMO), backend="nothing")
        lines = []
        model = binding.Model(packed(DEMO), verify=True, log=lambda level, text: lines.append((level, text)))
        self.assertEqual([(level, text.startswith(f"opened {packed(DEMO)}: ")) for level, text in lines], [(2, True)])
        session = model.session()
        self.refused(binding.BUSY, "sessions that it still has: 1", model.close)
        session.eval([1])
        session.close()
        self.assertRaises(ValueError, session.eval, [1])
        model.close()
        model.close()
        self.assertRaises(ValueError, lambda: model.info)
        self.assertRaises(TypeError, self.model.session, nonsense=1)
        self.assertRaises(ValueError, self.model.session().eval, [1, 2], seq=[0])


if __name__ == "__main__":
    main()
