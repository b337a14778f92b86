"""Generates text with the Python module; embed.c is the same in C:

    python3 generate.py MODEL PROMPT [N_TOKENS [SEED]]

Without a seed always the likeliest token; with one, random choices that depend on nothing else. It ends at an end token,
after N_TOKENS (64), or when the context is full. Exit codes: 1 failed, 2 wrong arguments."""
import os
import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "bindings/python"))
import dsv3


def fail(message, code):
    print(message, file=sys.stderr)
    sys.exit(code)


def number(name, given, largest):
    value = int(given) if given.isascii() and given.isdigit() and len(given) <= 20 else largest + 1
    if value > largest:
        fail(f'generate.py: {name}: got "{given}", expected a whole number in 0..{largest}', 2)
    return value


def main():
    if not 3 <= len(sys.argv) <= 5:
        fail("usage: generate.py MODEL PROMPT [N_TOKENS [SEED]]", 2)
    prompt = os.fsencode(sys.argv[2])
    n_tokens = number("N_TOKENS", sys.argv[3], 2**31 - 1) if len(sys.argv) > 3 else 64
    seed = number("SEED", sys.argv[4], 2**64 - 1) if len(sys.argv) > 4 else None
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # bytes that are no character come out as they are
    with dsv3.Model(sys.argv[1]) as model, model.session() as session:
        for text in session.generate(prompt, n_tokens, seed or 0, errors="surrogateescape", temperature=0 if seed is None else 1):
            print(text, end="", flush=True)
        print()


if __name__ == "__main__":
    try:
        main()
    except dsv3.Error as error:
        fail(f"generate.py: {error}", 1)
