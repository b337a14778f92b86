"""dsv3 dump against the goldens (tests/golden/README.md), and that its bits depend on nothing but the model and the ids."""
from dumps import *


class Golden(DumpCase):
    def test_absorbed_and_expanded(self):
        for case in DECODER_CASES:
            for attention in ("absorbed", "expanded"):
                with self.subTest(case, attention=attention):
                    self.assert_golden(case, load_safetensors(self.dump_case(case, "--attention", attention)))

    def test_fp8_activations(self):
        case = "ds3-fp8-ue8m0"
        want = load_safetensors(CASES / case / "expected_w8a8.safetensors")
        model, ids = packed(CASES / case), golden(case)["a"]["input_ids"].tolist()
        outputs = {}
        for gemm, scales in (("fp8:f32", "f32"), ("fp8:ue8m0", "ue8m0"), ("fp8", self.scales_of(case))):
            path = self.dump(model, ids, "--gemm", gemm)
            outputs[gemm] = path.read_bytes()
            got = load_safetensors(path)
            for name in ("logits", "hidden"):
                difference = np.abs(got[name].astype(np.float64) - want[f"{scales}/a/{name}"])
                largest = np.abs(want[f"{scales}/a/{name}"]).max()
                self.assertLess(difference.mean() / largest, 2e-3, (gemm, name))
                self.assertLess(difference.max() / largest, 0.1, (gemm, name))
        self.assertTrue(outputs["fp8"] == outputs[f"fp8:{self.scales_of(case)}"])
        self.assertFalse(outputs["fp8:f32"] == outputs["fp8:ue8m0"])

    def scales_of(self, case):
        config = json.loads((CASES / case / "config.json").read_text())
        return config["quantization_config"].get("scale_fmt", "f32")

    def test_without_scale_fmt_fp8_means_f32_scales(self):
        model, ids = packed(CASES / "ds3-fp8"), ids_of("ds3-fp8")
        self.assertEqual(self.scales_of("ds3-fp8"), "f32")
        self.assert_same_bits(self.dump(model, ids, "--gemm", "fp8"), self.dump(model, ids, "--gemm", "fp8:f32"))

    def test_demo_model(self):
        """The likeliest tokens over prompt and continuation are the continuation."""
        for row in EXPECTED["greedy"][:3] + EXPECTED["chat"][:2]:
            ids = row["ids"] + row["new_ids"]
            logits = load_safetensors(self.dump(packed(DEMO), ids))["logits"]
            self.assertEqual(logits[len(row["ids"]) - 1:-1].argmax(1).tolist(), row["new_ids"])


class Replacing(DumpCase):
    def test_only_a_tensor_file_is_replaced(self):
        model, other = TEMP / "precious.dsv3", TEMP / "link.safetensors"
        shutil.copy(packed(DEMO), model)
        os.symlink(model, other)
        before = model.read_bytes()
        for out, why in ((model, "not a safetensors file"), (other, "not a regular file"), (TEMP, "it is a folder")):
            self.fails(dsv3("dump", model, "--ids", "1,2", "--out", out), "write", why)
        self.assertTrue(model.read_bytes() == before and other.is_symlink())
        out = self.dump(model, [1, 2])
        self.ok(dsv3("dump", model, "--ids", "1,2,3", "--out", out))  # an older dump goes


class SameBits(DumpCase):
    def test_cutting(self):
        for case in SHORT_CASES:
            for attention in ("absorbed", "expanded"):
                base = self.dump_case(case, "--attention", attention)
                for chunk in (1, 7, 1000):
                    with self.subTest(case, attention=attention, chunk=chunk):
                        self.assert_same_bits(base, self.dump_case(case, "--attention", attention, "--chunk", chunk))

    def test_cutting_of_a_long_sequence(self):
        self.assert_same_bits(self.dump_case("ds3-long"), self.dump_case("ds3-long", "--chunk", 1000))

    def test_threads(self):
        for case in SHORT_CASES:
            with self.subTest(case):
                self.assert_same_bits(self.dump_case(case, "-t", 1), self.dump_case(case, "-t", 2))

    def test_options(self):
        """Also where the fast choices are made."""
        for options in (["--gemm", "fp8"], ["--kv", "bf16"], ["--gemm", "fp8:ue8m0", "--kv", "bf16", "--attention", "expanded"]):
            with self.subTest(options):
                case = "ds3-fp8-ue8m0"
                base = self.dump_case(case, *options)
                self.assert_same_bits(base, self.dump_case(case, *options, "--chunk", 3, "-t", 1))
                self.assertFalse(base.read_bytes() == self.dump_case(case).read_bytes())

    def test_batch_mates(self):
        for case in SHORT_CASES:
            mtp = ["--mtp"] if "mtp_logits" in golden(case)["a"] else []
            together = load_safetensors(self.dump_case(case))
            for sequence, ids in ids_of(case).items():
                with self.subTest(case, sequence=sequence):
                    alone = load_safetensors(self.dump(packed(CASES / case), ids, *mtp))
                    self.assertEqual(sorted(alone), sorted(key.split("/")[1] for key in together if key.startswith(sequence + "/")))
                    for name, values in alone.items():
                        np.testing.assert_array_equal(values, together[f"{sequence}/{name}"], name)

    def test_many_sequences(self):
        sequences = {f"s{i}": [(7 * i + j) % 320 for j in range(1 + i % 5)] for i in range(40)}
        model = packed(CASES / "ds3-f32")
        together = load_safetensors(self.dump(model, sequences))
        self.assert_same_bits(self.dump(model, sequences), self.dump(model, sequences, "--chunk", 2))
        for name in ("s0", "s13", "s39"):
            alone = load_safetensors(self.dump(model, sequences[name]))
            np.testing.assert_array_equal(alone["logits"], together[f"{name}/logits"])

    def test_ids_on_the_command_line(self):
        model = packed(CASES / "ds3-f32")
        self.assert_same_bits(self.dump(model, "1,2,3"), self.dump(model, [1, 2, 3]))
        self.assert_same_bits(self.dump(model, "1, 2, 3"), self.dump(model, [1, 2, 3]))
        self.assertEqual(load_safetensors(self.dump(model, "5"))["logits"].shape, (1, 320))

    def test_mtp(self):
        """The layer adds results and changes none; a single token has none of its rows."""
        model, ids = packed(CASES / "ds3-mtp"), ids_of("ds3-mtp")["a"]
        plain, mtp = load_safetensors(self.dump(model, ids)), load_safetensors(self.dump(model, ids, "--mtp"))
        self.assertEqual(sorted(set(mtp) - set(plain)), ["mtp_logits", "router_ids.3", "router_logits.3", "router_weights.3"])
        for name, values in plain.items():
            np.testing.assert_array_equal(values, mtp[name], name)
        single = load_safetensors(self.dump(model, "7", "--mtp"))
        self.assertEqual((single["mtp_logits"].shape, single["router_ids.3"].shape), ((0, 200), (0, 4)))


class LogitsToKeep(DumpCase):
    """transformers' argument: 0 all positions, n the last n, or a list of positions."""

    def test_rows(self):
        for case in ("ds3-mtp", "qwen3-moe", "mixtral"):
            model, ids = packed(CASES / case), {"a": list(range(9)), "b": [5, 4, 3, 2, 1]}
            mtp = ["--mtp"] if case == "ds3-mtp" else []
            whole = load_safetensors(self.dump(model, ids, *mtp))
            for keep, rows in (("0", lambda n: list(range(n))), ("1", lambda n: [n - 1]), ("7", lambda n: list(range(max(0, n - 7), n))),
                               ("100", lambda n: list(range(n))), ("[0]", lambda n: [0]), ("[4,0,2,2]", lambda n: [4, 0, 2, 2]),
                               ("[0,-1,-3]", lambda n: [0, n - 1, n - 3])):
                for chunk in (1, 4, 512):
                    with self.subTest(case, keep=keep, chunk=chunk):
                        got = load_safetensors(self.dump(model, ids, "--logits-to-keep", keep, "--chunk", chunk, *mtp))
                        self.assertEqual(sorted(got), sorted(whole))
                        for name, values in whole.items():
                            at = rows(len(ids[name[0]]))
                            if name.endswith("/logits"):
                                values = values[at]
                            elif name.endswith("/mtp_logits"):
                                values = values[[i - 1 for i in at if i > 0]]
                            np.testing.assert_array_equal(got[name], values, name)

    def test_refused(self):
        for keep, *parts in (("-1", "-1"), ("[5]", "position 5", "-5..4"), ("[]", "empty"), ("[0,-6]", "position -6"), ("[1.5]", "1.5"), ("x", "--logits-to-keep"),
                             ('{"a": 1}', "expected 0"), ("99999999999999999999", "expected 0"), ("1.5", "1.5")):
            with self.subTest(keep):
                out = TEMP / "out.safetensors"
                self.fails(dsv3("dump", packed(CASES / "ds3-f32"), "--ids", "1,2,3,4,5", "--out", out, "--logits-to-keep=" + keep), *parts)
                self.assertFalse(out.exists())
        self.fails(dsv3("dump", packed(CASES / "ds3-f32"), "--ids", "1", "--out", TEMP / "o", "--logits-to-keep="), "--logits-to-keep", code=2)


class Layout(DumpCase):
    def test_says_nothing(self):
        out = TEMP / "silent.safetensors"
        result = dsv3("dump", packed(CASES / "ds3-f32"), "--ids", "1,2,3", "--out", out)
        self.assertEqual((self.ok(result), result.stderr), (b"", b""))
        out.unlink()

    def test_tensors(self):
        got = load_safetensors(self.dump(packed(CASES / "ds3-f32"), "1,2,3"))
        shapes = {"logits": (3, 320), "hidden": (5, 3, 56), "final": (3, 56)}
        for layer in (1, 2, 3):
            shapes |= {f"router_ids.{layer}": (3, 5), f"router_weights.{layer}": (3, 5), f"router_logits.{layer}": (3, 24)}
        self.assertEqual({name: values.shape for name, values in got.items()}, shapes)
        self.assertEqual({name for name, values in got.items() if values.dtype == np.int64}, {name for name in shapes if "_ids." in name})

    def test_file(self):
        """As the format wants it: data without holes, the header a multiple of 8 bytes, every value at a multiple of its size."""
        raw = self.dump(packed(CASES / "ds3-f32"), {"a": [1, 2, 3], "b/c": [4]}).read_bytes()
        (header_bytes,) = struct.unpack_from("<Q", raw)
        header = json.loads(raw[8:8 + header_bytes])
        self.assertEqual(header_bytes % 8, 0)
        self.assertEqual(list(header), sorted(header))
        self.assertIn("b/c/logits", header)
        end = 0
        for t in sorted(header.values(), key=lambda t: t["data_offsets"]):
            size = {"F32": 4, "I64": 8}[t["dtype"]]
            self.assertEqual((t["data_offsets"][0], t["data_offsets"][0] % size), (end, 0))
            end += size * int(np.prod(t["shape"]))
            self.assertEqual(t["data_offsets"][1], end)
        self.assertEqual(8 + header_bytes + end, len(raw))


class BadInput(DumpCase):
    def setUp(self):
        self.out = TEMP / "out.safetensors"
        self.addCleanup(lambda: self.assertEqual([p.name for p in TEMP.glob("out.safetensors*")], []))

    def bad(self, ids, *parts, options=(), model="ds3-f32", **more):
        if not isinstance(ids, str):
            path = TEMP / "bad.json"
            path.write_bytes(ids)
            ids = path
        self.fails(dsv3("dump", packed(CASES / model), "--ids", ids, "--out", self.out, *options), *parts, **more)

    def test_ids(self):
        for ids, parts in (("1,2,320", ["320", "0..319", "item 2"]), ("1,-2", ["-2"]), ("", ["empty"]), ("1,,2", ["--ids"]),
                           ("99999999999999999999", ["1e+20"]), ("4294967296", ["4294967296"]), ("absent.json", ["absent.json", "No such file"]),
                           (b"[1, 2", ["bad.json", "parse error"]), (b"[1, 2.5]", ["2.5"]), (b'["1"]', ['"1"']), (b"[]", ["empty"]),
                           (b"{}", ["no sequences"]), (b'{"a": []}', ['"a"', "empty"]), (b'{"a": [1], "b": [true]}', ['"b"', "true"]),
                           (b'{"": [1]}', ["without a name"]), (b'{"a": [1], "a": [2]}', ['"a"', "twice"]), (b"7", ["number"]), (b'{"a": 7}', ['"a"', "number"]),
                           (b"\xff", ["bad.json"]), (b"", ["bad.json"]), (b"[" * 100000, ["bad.json"])):
            with self.subTest(ids[:40]):
                self.bad(ids, *parts)

    def test_too_long(self):
        limit = json.loads((CASES / "ds2-lite/config.json").read_text())["max_position_embeddings"]
        self.bad(json.dumps([1] * (limit + 1)).encode(), str(limit), str(limit + 1), model="ds2-lite")

    def test_options(self):
        self.bad("1", "multi-token-prediction", options=["--mtp"])
        self.bad("1", "abacus", options=["--backend", "abacus"])
        for options in (["--chunk", 0], ["--chunk", "x"], ["--gemm", "fp16"], ["--attention", "sideways"], ["--kv", "fp8"], ["-t", 0], ["--seed", 1]):
            self.bad("1", "--help", options=options, code=2)
        self.fails(dsv3("dump", "m", "--ids", "1"), "--out", code=2)
        self.fails(dsv3("dump", "m", "--out", "f"), "--ids", code=2)

    def test_output(self):
        model = packed(CASES / "ds3-f32")
        self.fails(dsv3("dump", model, "--ids", "1", "--out", TEMP / "absent/out.safetensors"), "absent", "No such file")
        self.fails(dsv3("dump", model, "--ids", "1", "--out", TEMP), "folder")

    def test_full_disk(self):
        """Nothing is left, whether the file was there before or not."""
        model = packed(CASES / "ds3-f32")
        for allowed in (0, 100, 5000):
            result = dsv3("dump", model, "--ids", "1,2,3", "--out", self.out, preexec_fn=small_files(allowed))
            self.fails(result, "out.safetensors.partial", "File too large")
            self.assertFalse(self.out.exists())
        kept = TEMP / "kept.safetensors"
        kept.write_text("what was there")
        self.fails(dsv3("dump", model, "--ids", "1", "--out", kept, preexec_fn=small_files(100)), "kept.safetensors")
        self.assertEqual(kept.read_text(), "what was there")

    def test_interrupted(self):
        ids = TEMP / "long.json"
        ids.write_text(json.dumps([i % 4000 for i in range(2048)]))
        process = start("dump", packed(DEMO), "--ids", ids, "--out", self.out, stderr=subprocess.PIPE)
        partial = self.out.with_name(self.out.name + ".partial")
        while not partial.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        self.assertEqual((process.communicate()[1], process.returncode), (b"", 130))


if __name__ == "__main__":
    main()
