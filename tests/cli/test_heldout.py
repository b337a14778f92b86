"""The demo model on text it was not trained on: perplexity, and how often the MTP layer agrees with the main model.

14,000 tokens: a statement about everything at once, and the slowest of these tests."""
from support import *

WINDOW = 512  # expected.json: the beginning-of-sentence token and 511 tokens, no overlap, the rest dropped
TOGETHER = 9  # windows in one dump


class Heldout(Case):
    def windows(self):
        ids = json.loads(self.ok(dsv3("tokenize", DEMO, "--plain", stdin=(DEMO / "heldout.txt").read_bytes())))
        step = WINDOW - 1
        return [[0, *ids[i:i + step]] for i in range(0, len(ids) - step + 1, step)]

    def dump(self, windows):
        ids, out = TEMP / "ids.json", TEMP / "out.safetensors"
        ids.write_text(json.dumps({str(i): window for i, window in enumerate(windows)}))
        self.ok(dsv3("dump", packed(DEMO), "--ids", ids, "--out", out, "--mtp", "--backend", "cpu", "--exact"))
        return load_safetensors(out)

    def test_perplexity_and_agreement(self):
        windows = self.windows()
        log_likelihood, agree = [], []
        for first in range(0, len(windows), TOGETHER):
            some = windows[first:first + TOGETHER]
            got = self.dump(some)
            for i, window in enumerate(some):
                logits = got[f"{i}/logits"].astype(np.float64)
                likeliest = logits.argmax(1)
                logits -= logits.max(1, keepdims=True)
                log_probability = logits - np.log(np.exp(logits).sum(1, keepdims=True))
                log_likelihood.extend(log_probability[np.arange(WINDOW - 1), window[1:]])
                agree.extend(got[f"{i}/mtp_logits"][:-1].argmax(1) == likeliest[1:-1])
        want = EXPECTED["perplexity"]
        self.assertEqual(len(log_likelihood), want["tokens"])
        self.assertAlmostEqual(-np.mean(log_likelihood), want["mean_nll"], delta=1e-5)
        self.assertAlmostEqual(np.exp(-np.mean(log_likelihood)), want["value"], delta=1e-3)
        self.assertAlmostEqual(np.mean(agree), EXPECTED["mtp"]["agreement"], delta=5e-4)


if __name__ == "__main__":
    main()
