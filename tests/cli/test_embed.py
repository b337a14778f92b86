"""examples/embed.c: a C99 program that writes text with the library."""
from support import *


class Embed(Case):
    def test_writes_the_expected_text(self):
        for row in EXPECTED["greedy"]:
            with self.subTest(row["prompt"]):
                result = program("embed", packed(DEMO), row["prompt"], len(row["new_ids"]))
                self.assertEqual(self.ok(result).decode(), row["text"] + "\n")

    def test_default_length(self):
        row = next(row for row in EXPECTED["greedy"] if len(row["new_ids"]) == 64)
        self.assertEqual(self.ok(program("embed", packed(DEMO), row["prompt"])).decode(), row["text"] + "\n")

    def test_failures(self):
        self.assertEqual(program("embed").returncode, 2)
        self.fails(program("embed", TEMP / "absent.dsv3", "a"), "absent.dsv3", name="embed")
        self.fails(program("embed", packed(CASES / "ds3-f32"), "a"), "tokenizer", name="embed")


if __name__ == "__main__":
    main()
