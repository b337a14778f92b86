"""Generates text with the Python module; embed.c is the same in C:

    python3 generate.py MODEL PROMPT [N_TOKENS [SEED]]

Without a seed always the likeliest token; with one, random choices that depend on nothing else."""
import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "bindings/python"))
import dsv3


def main():
    if not 3 <= len(sys.argv) <= 5:
        sys.exit("usage: generate.py MODEL PROMPT [N_TOKENS [SEED]]")
    n_tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 64
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else None
    with dsv3.Model(sys.argv[1]) as model, model.session() as session:
        for text in session.generate(sys.argv[2], n_tokens, seed or 0, temperature=0 if seed is None else 1):
            print(text, end="", flush=True)
        print()


if __name__ == "__main__":
    try:
        main()
    except dsv3.Error as error:
        sys.exit(f"generate.py: {error}")
