"""dsv3 run: what it writes, how it stops, and how it fails; and dsv3 info, --version, --help."""
import contextlib
import re

from support import *

GREEDY = ["--temp", "0", "-q"]
FIRST = EXPECTED["greedy"][0]


def run(*args, **options):
    return dsv3("run", packed(DEMO), *args, **options)


def greedy(prompt, *args, **options):
    return run("-p", prompt, *GREEDY, *args, **options)


class Text(Case):
    def test_greedy_continuations(self):
        for row in EXPECTED["greedy"]:
            with self.subTest(row["prompt"]):
                result = greedy(row["prompt"], "-n", len(row["new_ids"]), "--exact")
                self.assertEqual(self.ok(result).decode(), row["text"])
                self.assertEqual(result.stderr, b"")

    def test_chat_continuations(self):
        for row in EXPECTED["chat"]:
            (message,) = row["messages"]
            prompt = f"<｜User｜>{message['content']}<｜Assistant｜>"
            with self.subTest(prompt):
                ids = self.ok(dsv3("tokenize", packed(DEMO), "--bos", stdin=prompt.encode()))
                self.assertEqual(json.loads(ids), row["ids"])
                result = greedy(prompt, "--special", "-n", len(row["new_ids"]), "--exact")
                self.assertEqual(self.ok(result).decode(), row["text"])

    def test_added_tokens_are_text_without_special(self):
        row = EXPECTED["chat"][0]
        prompt = f"<｜User｜>{row['messages'][0]['content']}<｜Assistant｜>"
        plain = json.loads(self.ok(dsv3("tokenize", packed(DEMO), "--plain", stdin=prompt.encode())))
        result = run("-p", prompt, "--temp", "0", "-n", 1)
        self.assertIn(f"prefill {len(plain) + 1} tokens".encode(), result.stderr)

    def test_every_way_to_compute(self):
        n = len(FIRST["new_ids"])
        for options in (["-t", 1], ["-t", 2], ["--attention", "expanded"], ["--attention", "absorbed"], ["-c", 100],
                        ["--backend", "ref"], ["--load", "copy"]):
            with self.subTest(options):
                self.assertEqual(self.ok(greedy(FIRST["prompt"], "-n", n, *options)).decode(), FIRST["text"])
        for options in (["--gemm", "fp8"], ["--gemm", "fp8:f32"], ["--gemm", "fp8:ue8m0"], ["--kv", "bf16"]):
            with self.subTest(options):
                self.assertTrue(self.ok(greedy(FIRST["prompt"], "-n", n, *options)))

    def test_prompt_from_file_and_standard_input(self):
        for prompt in (b"Fanny was", b"Fanny was\n", b" a\r\nb\tc\n\n", b"nul \0 and \xff\xfe not UTF-8 \xe2\x82"):
            path = TEMP / "prompt.txt"
            path.write_bytes(prompt)
            ids = json.loads(self.ok(dsv3("tokenize", packed(DEMO), "--bos", "--plain", stdin=prompt)))
            results = [run("--temp", 0, "-n", 5, *more, stdin=prompt) for more in ([], ["-f", "-"], ["-f", path])]
            for result in results:
                self.assertEqual(self.ok(result), results[0].stdout)
                self.assertIn(f"prefill {len(ids)} tokens".encode(), result.stderr)
        self.assertEqual(self.ok(greedy("Fanny was", "-n", 18)), self.ok(run("-q", "--temp", 0, "-n", 18, stdin=b"Fanny was")))

    def test_the_prompt_may_look_like_something_else_or_be_empty(self):
        for prompt in ("-n", "--help", "[the,of]", "{}", "'quoted'"):
            with self.subTest(prompt):
                self.assertEqual(self.ok(greedy(prompt, "-n", 3)), self.ok(run(*GREEDY, "-n", 3, stdin=prompt.encode())))
        self.assertTrue(self.ok(greedy("", "-n", 3)))  # the beginning token alone

    def test_zero_tokens(self):
        self.assertEqual(self.ok(greedy("Fanny was", "-n", 0)), b"")

    def test_end_token(self):
        """With a token of the expected answer as a further end token."""
        end = FIRST["new_ids"][3]
        checkpoint = Checkpoint(DEMO)
        checkpoint.config["eos_token_id"] = [1, end]
        common = ["run", packed(checkpoint.write()), "-p", FIRST["prompt"], *GREEDY, "-n", len(FIRST["new_ids"])]
        for options, ids in (([], FIRST["new_ids"][:3]), (["--ignore-eos"], [id for id in FIRST["new_ids"] if id != end])):
            text = self.ok(dsv3("tokenize", DEMO, "--decode", stdin=json.dumps(ids).encode()))
            self.assertEqual(self.ok(dsv3(*common, *options)), text)


class Sampling(Case):
    def sample(self, *args):
        return self.ok(run("-q", "-p", "It was", "-n", 12, *args))

    def test_seed(self):
        self.assertEqual(self.sample("-s", 7), self.sample("-s", 7, "-t", 1))
        self.assertEqual(len({self.sample("-s", seed) for seed in range(6)}), 6)
        for bad in (2**64, -1, "1.5", "1e3", "0x10", "", "x"):
            self.fails(dsv3("run", packed(DEMO), "-p", "a", "-s", bad), "--seed: got", "expected a whole number in 0..18446744073709551615", code=2)
        self.assertTrue(self.sample("-s", 2**64 - 1))

    def test_random_seed_is_said_and_reproduces(self):
        result = run("-p", "It was", "-n", 12)
        (seed,) = re.findall(rb"seed (\d+)", result.stderr)
        self.assertEqual(self.sample("-s", seed.decode()), result.stdout)

    def test_defaults_are_the_checkpoint_s(self):
        asked = json.loads((DEMO / "generation_config.json").read_text())
        self.assertEqual(self.sample("-s", 5), self.sample("-s", 5, "--temp", asked["temperature"], "--top-p", asked["top_p"]))
        self.assertNotEqual(self.sample("-s", 5), self.sample("-s", 5, "--temp", 3))

    def test_everything_that_leaves_one_token_is_greedy(self):
        likeliest = self.sample("--temp", 0)
        for options in (["--top-k", 1], ["--min-p", 1], ["--top-p", 1e-9], ["--temp", 1e-6]):
            self.assertEqual(self.sample("-s", 3, *options), likeliest, options)

    def test_without_generation_config_it_is_greedy(self):
        checkpoint = Checkpoint(DEMO)
        (checkpoint.folder / "generation_config.json").unlink()
        path = packed(checkpoint.write())
        result = dsv3("run", path, "-q", "-p", FIRST["prompt"], "-n", len(FIRST["new_ids"]))
        self.assertEqual(self.ok(result).decode(), FIRST["text"])


class Stop(Case):
    def stopped(self, *stops):
        options = [x for stop in stops for x in ("--stop", stop)]
        return self.ok(greedy(FIRST["prompt"], "-n", len(FIRST["new_ids"]), *options)).decode()

    def test_stop_texts_anywhere_in_tokens(self):
        text = FIRST["text"]
        for begin, length in ((0, 1), (0, 4), (1, 1), (2, 9), (5, 3), (10, 14), (20, 2), (25, 11), (31, 7), (40, 5), (len(text) - 1, 1)):
            stop = text[begin:begin + length]
            with self.subTest(stop):
                self.assertEqual(self.stopped(stop), text[:text.index(stop)])

    def test_what_only_begins_like_a_stop_text_is_shown(self):
        text = FIRST["text"]
        for stop in (text + "!", text[5:] + "!", text[10:20] + "~", text[-1] + "?"):
            self.assertEqual(self.stopped(stop), text)

    def test_several(self):
        text = FIRST["text"]
        self.assertEqual(self.stopped("nowhere", " rector", " of"), text[:text.index(" of")])
        # The one that is complete first counts; of two that end together the longer one.
        self.assertEqual(self.stopped(" consequences of", "sequences"), text[:text.index("sequences")])
        self.assertEqual(self.stopped("que", "sequences"), text[:text.index("que")])
        self.assertEqual(self.stopped("sequences", " consequences"), text[:text.index(" consequences")])

    def test_no_stop_text_is_taken_for_a_list(self):
        self.assertEqual(self.stopped("[the,of]"), FIRST["text"])
        self.assertEqual(self.stopped("{}"), FIRST["text"])

    def test_beyond_ascii(self):
        row = next(row for row in EXPECTED["greedy"] if "—" in row["text"])
        result = greedy(row["prompt"], "-n", len(row["new_ids"]), "--stop", "—")
        self.assertEqual(self.ok(result).decode(), row["text"].split("—")[0])


class Streams(Case):
    def test_standard_error(self):
        result = run("-p", FIRST["prompt"], "--temp", 0, "-n", 15)
        load, timing = self.lines(result)
        self.assertRegex(load, r"deepseek_v3, 14\.7 M parameters, 17\.\d\d MB; context 2048; seed \d+$")
        self.assertRegex(timing, r"^prefill 12 tokens, [\d.]+ tok/s; decode 14 tokens, [\d.]+ tok/s, [\d.]+ GB/s$")
        self.assertEqual(result.stdout.decode(), FIRST["text"])  # and no newline at its end

    def lines(self, result):
        self.ok(result)
        return result.stderr.decode().splitlines()

    def test_full_context(self):
        ids = len(FIRST["ids"])
        result = run("-p", FIRST["prompt"], "--temp", 0, "-c", ids + 8)
        expected = self.ok(greedy(FIRST["prompt"], "-n", 8))
        self.assertEqual(self.ok(result), expected)
        self.assertRegex(result.stderr.decode(), rf"context of {ids + 8} tokens is full after 8 tokens")
        # Quiet, it is said only where fewer tokens came than were asked for.
        result = greedy(FIRST["prompt"], "-c", ids + 8)
        self.assertEqual((self.ok(result), result.stderr), (expected, b""))
        result = greedy(FIRST["prompt"], "-c", ids + 8, "-n", 8)
        self.assertEqual((self.ok(result), result.stderr), (expected, b""))
        result = greedy(FIRST["prompt"], "-c", ids + 8, "-n", 9)
        self.assertEqual(self.ok(result), expected)
        self.assertIn(b"is full after 8 tokens", result.stderr)
        self.assertEqual(self.ok(greedy(FIRST["prompt"], "-c", ids)), b"")

    def test_only_whole_characters_are_written(self):
        """At a high temperature many tokens are single bytes. No write may end where more bytes could complete a character."""
        process = start("run", packed(DEMO), "-q", "-p", "It", "-n", 400, "--temp", 30, "--top-p", 1, "-s", 1, stdout=subprocess.PIPE)
        pieces = []
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            pieces.append(piece)
        process.stdout.close()
        self.assertEqual(process.wait(), 0)
        self.assertGreater(len(re.findall(rb"[\xc2-\xf4]", b"".join(pieces))), 3)
        for piece in pieces[:-1]:
            self.assertIsNone(re.search(rb"([\xc2-\xdf]|[\xe1-\xec\xee\xef][\x80-\xbf]?|[\xf1-\xf3][\x80-\xbf]{0,2})\Z", piece), piece)

    def test_what_is_not_a_character_comes_out_as_it_is(self):
        result = self.ok(run("-q", "-p", "It", "-n", 200, "--temp", 30, "--top-p", 1, "-s", 1))
        with self.assertRaises(UnicodeDecodeError):
            result.decode()

    def test_reader_that_goes_away(self):
        process = start("run", packed(DEMO), "-p", "It", *GREEDY, "--ignore-eos", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertTrue(os.read(process.stdout.fileno(), 1))
        process.stdout.close()
        self.assertEqual((process.stderr.read(), process.wait()), (b"", 0))
        process.stderr.close()

    def test_reader_that_is_slow(self):
        """Standard output may be a full pipe that somebody has made non-blocking."""
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        process = start("info", packed(DEMO), "--json", stdout=write_end)
        os.close(write_end)
        with open(read_end, "rb") as pipe:
            time.sleep(0.2)
            got = pipe.read()
        self.assertEqual(process.wait(), 0)
        self.assertGreater(len(got), 1 << 16)
        json.loads(got)

    def test_full_standard_output(self):
        with open("/dev/full", "wb") as full:
            result = greedy("It", "-n", 3, stdout=full)
        self.fails(result, "standard output", "No space left")

    def test_terminal(self):
        """On a terminal the answer ends with a newline."""
        master, slave = os.openpty()
        self.ok(greedy(FIRST["prompt"], "-n", 3, stdout=slave))
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # nothing is left
            while chunk := os.read(master, 1 << 16):
                shown += chunk
        os.close(master)
        self.assertTrue(shown.endswith(b"\r\n"), shown)

    def test_closed_standard_streams(self):
        result = subprocess.run(f"'{BIN}/dsv3' run {packed(DEMO)} -p It -n 2 -q >&-", shell=True, stderr=subprocess.PIPE)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"standard output", result.stderr)


class Signals(Case):
    def start(self, *args, **options):
        process = start("run", packed(DEMO), *args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def test_while_writing(self):
        whole = self.ok(greedy("It was", "-n", 600, "--ignore-eos"))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process = self.start("-p", "It was", "--temp", 0, "--ignore-eos", "-n", 600)
            out = os.read(process.stdout.fileno(), 1)
            process.send_signal(number)
            rest, err = process.communicate()
            self.assertEqual(process.returncode, 128 + number)
            self.assertTrue(whole.startswith(out + rest) and len(out + rest) < len(whole))
            self.assertIn(b"tok/s", err)

    def test_during_prefill(self):
        process = self.start("-f", self.long_prompt(), "--temp", 0)
        self.assertIn(b"context", process.stderr.readline())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        self.assertEqual((out, process.returncode), (b"", 130))

    def test_nohup(self):
        process = self.start("-p", "It was", *GREEDY, "-n", 60, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        os.read(process.stdout.fileno(), 1)
        process.send_signal(signal.SIGHUP)
        process.communicate()
        self.assertEqual(process.returncode, 0)

    def long_prompt(self):
        path = TEMP / "long.txt"
        path.write_bytes((DEMO / "heldout.txt").read_bytes()[:6000])
        return path

    def test_while_reading_the_prompt(self):
        process = self.start()
        wait_for_handler(process)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(), 130)
        self.assertEqual((process.stdout.read(), process.stderr.read()), (b"", b""))


class BadInput(Case):
    def test_usage(self):
        for args in ([], ["walk"], ["run"], ["run", "a", "b"], ["run", "m", "-p", "a", "-f", "b"], ["run", "m", "-n", "-1"],
                     ["run", "m", "-n", "x"], ["run", "m", "-n", "3000000000"], ["run", "m", "-c", "0"], ["run", "m", "-t", "0"],
                     ["run", "m", "-s", "-1"], ["run", "m", "--temp", "-1"], ["run", "m", "--temp", "nan"], ["run", "m", "--top-p", "1.5"],
                     ["run", "m", "--top-k", "-2"], ["run", "m", "--min-p", "2"], ["run", "m", "--stop", ""], ["run", "m", "--gemm", "int8"],
                     ["run", "m", "--kv", "f16"], ["run", "m", "--attention", "sideways"], ["run", "m", "-p"], ["run", "m", "--nope"],
                     ["info"], ["info", "m", "--nope"], ["run", "m", "-p", "a\nb", "-x\ny"]):
            with self.subTest(args):
                self.fails(dsv3(*args), "--help", code=2)

    def test_model_file(self):
        good = packed(DEMO).read_bytes()
        self.fails(dsv3("run", TEMP / "absent.dsv3", "-p", "a"), "absent.dsv3", "No such file")
        self.fails(dsv3("run", DEMO, "-p", "a"), "demo-model")
        path = TEMP / "bad.dsv3"
        flipped = bytearray(good)
        flipped[200] ^= 1
        for name, content in (("empty", b""), ("text", b"hello\n" * 1000), ("truncated", good[:-1]), ("half", good[:len(good) // 2]),
                              ("header only", good[:64]), ("longer", good + b"\0"), ("index byte flipped", bytes(flipped))):
            with self.subTest(name):
                path.write_bytes(content)
                self.fails(dsv3("run", path, "-p", "a"), "bad.dsv3")
                self.fails(dsv3("info", path), "bad.dsv3")

    def test_every_flipped_byte_of_the_index_is_noticed(self):
        good = packed(DEMO).read_bytes()
        path = TEMP / "flipped.dsv3"
        for at in [*range(0, 64, 7), *range(64, 60000, 6007)]:
            with self.subTest(at):
                path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1:])
                self.fails(dsv3("info", path), "flipped.dsv3")

    def test_prompt(self):
        self.fails(run("-p", FIRST["prompt"], "-c", 8), "12 tokens", "holds 8", "2048")
        self.fails(run("-p", "a", "-c", 4096), "4096", "2048")
        self.fails(run("-f", TEMP / "absent.txt"), "absent.txt", "No such file")
        self.fails(run("-f", TEMP), "Is a directory")
        self.fails(run("-p", "a", "--backend", "abacus"), "abacus")

    def test_no_tokenizer(self):
        self.fails(dsv3("run", packed(CASES / "ds3-f32"), "-p", "a"), "tokenizer")

    def test_empty_prompt_without_beginning_token(self):
        checkpoint = Checkpoint(DEMO)
        path = checkpoint.folder / "tokenizer_config.json"
        config = json.loads(path.read_text())
        config["add_bos_token"] = False
        path.write_text(json.dumps(config))
        model = packed(checkpoint.write())
        self.fails(dsv3("run", model, "-p", ""), "prompt is empty")
        self.ok(dsv3("run", model, "-q", "-p", "a", "-n", 1))

    def test_control_characters_are_spelt_out(self):
        self.fails(dsv3("run", TEMP / "two\nlines\x1b[31m.dsv3", "-p", "a"), "two\\x0alines\\x1b[31m")


class About(Case):
    def test_version_and_help(self):
        self.assertRegex(self.ok(dsv3("--version")).decode(), r"(?s)^dsv3 \d+\.\d+\.\d+\n.*git: .*\n.*CUDA")
        help_text = self.ok(dsv3("--help")).decode()
        for word in ("run", "info", "dump", "tokenize", "Exit codes: 0", "130"):
            self.assertIn(word, help_text)
        for command in ("run", "info", "dump", "tokenize"):
            self.assertIn("MODEL", self.ok(dsv3(command, "--help")).decode())

    def test_info_json(self):
        d = json.loads(self.ok(dsv3("info", packed(DEMO), "--json")))
        for key in ("id", "file_bytes", "parameters", "bytes_per_token", "config", "bytes", "layers", "sections", "tensors"):
            self.assertIn(key, d)
        self.assertEqual(d["file_bytes"], packed(DEMO).stat().st_size)
        self.assertEqual([layer["kind"] for layer in d["layers"]], ["dense", *["moe"] * 5, "mtp"])
        self.assertEqual(d["layers"][1]["n_routed_experts"], 16)
        self.assertEqual(d["config"]["kv_lora_rank"], 128)
        self.assertIn("tokenizer.json", d["sections"])
        index = json.loads((DEMO / "model.safetensors.index.json").read_text())["weight_map"]
        names = {t["name"] for t in d["tensors"]}
        self.assertEqual(names, {name for name in index if not name.endswith("_scale_inv")})
        roles = [d["bytes"], *(layer["bytes"] for layer in d["layers"])]
        self.assertEqual(sum(t["bytes"] for t in d["tensors"] if "alias_of" not in t), sum(sum(r.values()) for r in roles))

    def test_info_table(self):
        shown = self.ok(dsv3("info", packed(DEMO))).decode()
        for part in ("deepseek_v3", "kv_lora_rank", "routed_experts", "model.layers.*.mlp.experts.*.up_proj.weight",
                     "F8_E4M3/F32 [128,128]", "tokenizer.json", "mtp"):
            self.assertIn(part, shown)


if __name__ == "__main__":
    main()
