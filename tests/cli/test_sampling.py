"""The options of dsv3 run that choose tokens: each against what it must do to known greedy texts."""
from support import *

FIRST = EXPECTED["greedy"][0]
N = len(FIRST["new_ids"])


class Sampling(Case):
    def ids(self, *args, n=N):
        """The tokens of an answer to the first prompt, from its text: greedy answers only, whose text is tokenised as it was made."""
        return self.ok(dsv3("run", packed(DEMO), "-q", "-p", FIRST["prompt"], "-n", n, *args))

    def greedy(self, *args, n=N):
        return self.ids("--temp", 0, *args, n=n)

    def text(self, ids):
        return self.ok(dsv3("tokenize", DEMO, "--decode", stdin=json.dumps(ids).encode()))

    def test_defaults_change_nothing(self):
        text = FIRST["text"].encode()
        self.assertEqual(self.greedy(), text)
        self.assertEqual(self.greedy("--typical-p", 0.2, "--top-k", 3), text)
        self.assertEqual(self.greedy("--repetition-penalty", 1, "--presence-penalty", 0, "--frequency-penalty", 0), text)
        self.assertEqual(self.greedy("--repetition-penalty", 0, "--penalty-window", 5), text)
        drawn = self.ids("-s", 4)
        self.assertEqual(self.ids("-s", 4, "--typical-p", 1, "--min-p", 0, "--top-k", 0, "--repetition-penalty", 1), drawn)
        self.assertEqual(self.ids("-s", 4), drawn)

    def test_bias_bans_and_forces(self):
        first, *rest = FIRST["new_ids"]
        self.assertNotIn(self.text([first]), self.greedy("--logit-bias", f"{first}=-1e6", n=1))
        forced = next(id for id in rest if id != first)
        self.assertEqual(self.greedy("--logit-bias", f"{forced}=1e6", n=3), self.text([forced] * 3))
        self.assertEqual(self.greedy("--logit-bias", f"{forced}=1e6", "--logit-bias", f"{forced}=-1e6"), FIRST["text"].encode())

    def test_penalties_end_repetition(self):
        forced = FIRST["new_ids"][0]
        bias = ["--logit-bias", f"{forced}=1000"]
        again = self.text([forced] * 4)
        self.assertEqual(self.greedy(*bias, n=4), again)
        for penalty in (["--presence-penalty", 5000], ["--frequency-penalty", 5000], ["--repetition-penalty", 1e6]):
            answer = self.greedy(*bias, *penalty, n=4)
            self.assertTrue(answer.startswith(self.text([forced])), penalty)
            self.assertNotEqual(answer, again, penalty)
        # It is 600 a time: the second time costs too much.
        self.assertEqual(self.greedy(*bias, "--frequency-penalty", 600, n=2), self.text([forced] * 2))
        self.assertNotEqual(self.greedy(*bias, "--frequency-penalty", 600, n=3), self.text([forced] * 3))
        # A window of one token sees the last only: every second token is the forced one.
        answer = self.greedy(*bias, "--presence-penalty", 5000, "--penalty-window", 1, n=4)
        self.assertEqual(answer.count(self.text([forced])), 2)

    def test_penalties_see_the_prompt(self):
        forced = FIRST["ids"][-1]
        bias = ["--logit-bias", f"{forced}=1000"]
        self.assertEqual(self.greedy(*bias, n=1), self.text([forced]))
        self.assertNotEqual(self.greedy(*bias, "--presence-penalty", 5000, n=1), self.text([forced]))

    def test_typical_sampling_of_little_leaves_one_token(self):
        answers = {self.ids("-s", seed, "--temp", 1, "--typical-p", 1e-9) for seed in range(4)}
        self.assertEqual(len(answers), 1)

    def test_the_checkpoint_s_penalty_is_kept(self):
        checkpoint = Checkpoint(DEMO)
        path = checkpoint.folder / "generation_config.json"
        path.write_text(json.dumps({"repetition_penalty": 1.5}))
        model = packed(checkpoint.write())
        answer = self.ok(dsv3("run", model, "-q", "-p", FIRST["prompt"], "-n", N))
        self.assertEqual(answer, self.greedy("--repetition-penalty", 1.5))
        self.assertNotEqual(answer, FIRST["text"].encode())
        path.write_text(json.dumps({"repetition_penalty": -1}))
        self.fails(program("dsv3-convert", checkpoint.folder, TEMP / "bad.dsv3"), "generation_config.json", "repetition_penalty", name="dsv3-convert")

    def test_values_that_make_no_sense(self):
        for args in (["--typical-p", 2], ["--typical-p", "nan"], ["--repetition-penalty", -1], ["--repetition-penalty", "inf"],
                     ["--presence-penalty", "nan"], ["--frequency-penalty", "1e9"], ["--penalty-window", -1], ["--logit-bias", "5"],
                     ["--logit-bias", "x=1"], ["--logit-bias", "1.5=1"], ["--logit-bias", "-1=1"], ["--logit-bias", "1=nan"],
                     ["--logit-bias", "1=inf"], ["--logit-bias", "1="], ["--logit-bias", "=1"]):
            with self.subTest(args):
                self.fails(dsv3("run", "m", *args), "--help", code=2)
        self.fails(dsv3("run", packed(DEMO), "-q", "-p", "a", "-n", 1, "--logit-bias", "99999999=1"), "logit_bias", "99999999")


if __name__ == "__main__":
    main()
