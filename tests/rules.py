#!/usr/bin/env python3
"""The rules of docs/architecture.md that a program can check: who includes whom, and the house rules of the sources.

Prints every violation as FILE:LINE: what, and exits 1 if there is one. Usage: rules.py [FOLDER]
"""
import collections
import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), ".."))
SOURCES = (".h", ".cpp", ".c", ".cu", ".cuh")
LARGEST_FILE = 800  # lines
CLANG_FORMAT = 14  # Debian 12's
LARGEST_TREE = 48 << 20  # bytes of all tracked files

# What each room may include of the project; system headers are free but for THIRD_PARTY. tests/ may include anything.
ROOMS = {
    "ggml-lite": ["ggml-lite"],
    "cuda": ["cuda", "ggml-lite"],
    "model": ["model", "ggml-lite"],
    "text": ["text", "ggml-lite"],
    "convert": ["convert", "model", "text", "ggml-lite", "version.h"],
    "tools": ["tools", "dsv3.h"],
    "examples": ["dsv3.h"],
    "bench": ["bench", "dsv3.h", "ggml-lite", "cuda"],
    "dsv3.h": [],
    "api": ["api", "dsv3.h", "model", "text", "ggml-lite", "cuda"],
    "dsv3.cpp": ["api", "dsv3.h", "model", "text", "ggml-lite", "cuda", "version.h"],
}
# Headers of other projects, and who may include them.
THIRD_PARTY = {
    "nlohmann": ["ggml-lite/json.cpp", "tools"],
    "CLI": ["tools", "bench", "convert/main.cpp"],
    "xxhash.h": ["ggml-lite"],
    "pcre2.h": ["text"],
    "utf8proc.h": ["text"],
    "editline": ["tools"],
    "histedit.h": ["tools"],
    "boost": ["tools"],
    "doctest": [],
}
LIBRARY = ["ggml-lite", "cuda", "model", "text", "convert", "api", "dsv3.cpp", "dsv3.h"]  # but for convert/main.cpp
MODELS = re.compile(r"deepseek|kimi|moonlight|qwen|mixtral", re.IGNORECASE)
BANNED = re.compile(r"(?<![\w.>])(?:std::)?(printf|fprintf|puts|putchar|perror|cout|cerr|clog|exit|_exit|abort|getenv|"
                    r"secure_getenv|assert|throw|terminate|system|popen)\b(?=\s*(?:\(|<<|;|[\w:]))")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')

problems = []


def report(path, line, what):
    problems.append(f"{path}:{line}: {what}")


def is_under(path, rooms):
    return any(path == room or path.startswith(room + "/") for room in rooms)


def without_comments(text):
    """The text with comments, strings and characters blanked, line by line as before."""
    pattern = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)
    return pattern.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def tracked_files():
    """Paths that git knows or would know: tracked, and untracked ones that are not ignored."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            capture_output=True, check=False)
    if listed.returncode == 0:
        paths = [p for p in listed.stdout.decode().split("\0") if p]
        return sorted(set(p for p in paths if os.path.isfile(os.path.join(ROOT, p))))
    print("rules: not a git checkout; looking at all files")
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in ("build", ".git", ".deps", "__pycache__")]
        found += [os.path.relpath(os.path.join(folder, name), ROOT) for name in names]
    return sorted(found)


def check_includes(path, text):
    room = next((r for r in sorted(ROOMS, key=len, reverse=True) if is_under(path, [r])), None)
    if room is None:
        return  # tests
    for number, line in enumerate(text.splitlines(), 1):
        found = INCLUDE.match(line)
        if not found:
            continue
        quote, name = found.groups()
        for library, allowed in THIRD_PARTY.items():
            if is_under(name, [library]) and not is_under(path, allowed):
                report(path, number, f"includes {name}: only {', '.join(allowed) or 'tests'} may")
        ours = quote == '"' or any(is_under(name, [r]) for r in [*ROOMS, "tests"])
        third_party = any(is_under(name, [library]) for library in THIRD_PARTY)
        if ours and not third_party and not is_under(name, ROOMS[room]):
            report(path, number, f"includes {name}: {room} may include {', '.join(ROOMS[room]) or 'nothing of the project'}")
        if quote == '"' and not third_party and name != "version.h" and not os.path.isfile(os.path.join(ROOT, name)):
            report(path, number, f"includes {name}: paths start at the root of the project")


def check_source(path, text):
    lines = text.splitlines()
    if len(lines) > LARGEST_FILE:
        report(path, len(lines), f"{len(lines)} lines, at most {LARGEST_FILE}")
    for number, line in enumerate(lines, 1):
        if not line.isascii() and not is_under(path, ["tests"]):  # tests hold text of all kinds
            report(path, number, "not ASCII")
        if is_under(path, ["ggml-lite", "cuda"]) and MODELS.search(line):
            report(path, number, f"names a model: {MODELS.search(line).group()}")
    if is_under(path, LIBRARY) and path != "convert/main.cpp":
        for number, line in enumerate(without_comments(text).splitlines(), 1):
            for found in BANNED.finditer(line):
                report(path, number, f"{found.group(1)} in the library")
    header = path.endswith((".h", ".cuh"))
    if header and is_under(path, ["ggml-lite", "cuda", "model", "text", "convert", "api", "tools"]):
        if not lines or not lines[0].startswith(("// ", "/* ")):
            report(path, 1, "does not start with a comment that says what it owns")
        if "#pragma once" not in text:
            report(path, 1, "has no #pragma once")


def types_of(path, text):
    """Names of the types that the source defines, with their namespaces. Nameless namespaces hide theirs."""
    namespaces = []
    for number, line in enumerate(text.splitlines(), 1):
        if opened := re.match(r"(?:inline )?namespace ([\w:]*) ?\{", line):
            namespaces.append(opened[1])
        elif line.startswith("}  // namespace"):
            namespaces.pop()
        elif defined := re.match(r"(?:class|struct|union|enum class|enum) (\w+)(?: final)?(?: : .*)? \{", line):
            if "" not in namespaces:
                yield "::".join([*namespaces, defined[1]]), (path, number)


def check_names_are_once(types):
    """Two types of one name in one namespace link without a word, and one's functions run for the other."""
    for name, places in types.items():
        if len({path for path, _ in places}) > 1:
            for path, number in places:
                others = ", ".join(sorted({p for p, _ in places} - {path}))
                report(path, number, f"{name} is a type of {others} too")


def check_api_is_tested(files):
    """Every function of dsv3.h that takes arguments is called with wrong ones somewhere in tests/unit/test_*api*.cpp."""
    def text(path):
        with open(os.path.join(ROOT, path), encoding="utf-8") as file:
            return without_comments(file.read())
    if "dsv3.h" not in files:
        return
    tests = "".join(text(path) for path in files if re.fullmatch(r"tests/unit/test_\w*api\w*\.cpp", path))
    for name, arguments in re.findall(r"\b(dsv3_\w+)\(([^)]*)\)", text("dsv3.h")):
        if arguments.strip() != "void" and not re.search(rf"\b{name}\(", tests):
            report("dsv3.h", 1, f"{name} is not called in tests/unit/test_api.cpp")


def check_format(paths):
    version = ""
    if shutil.which("clang-format"):
        version = subprocess.run(["clang-format", "--version"], capture_output=True, text=True, check=False).stdout
    if f"version {CLANG_FORMAT}." not in version:  # another one formats some things otherwise
        print(f"rules: SKIPPED: the format was not checked: clang-format {CLANG_FORMAT} expected, got {version.strip() or 'none'}")
        return
    for first in range(0, len(paths), 20):
        done = subprocess.run(["clang-format", "--dry-run", "--style=file", *paths[first:first + 20]],
                              cwd=ROOT, capture_output=True, text=True, check=False)
        seen = set()
        for found in re.finditer(r"^(.+?):(\d+):\d+: (?:warning|error): ", done.stderr, re.MULTILINE):
            path, number = found.groups()
            if path not in seen:  # the first place of a file is enough
                seen.add(path)
                report(path, number, "not as clang-format has it (clang-format -i)")


def main():
    files = tracked_files()
    size = sum(os.path.getsize(os.path.join(ROOT, p)) for p in files)
    if size > LARGEST_TREE:
        report(".", 0, f"the tracked files have {size} bytes, at most {LARGEST_TREE}")
    formatted = []
    types = collections.defaultdict(list)
    for path in files:
        if not path.endswith((*SOURCES, ".py", ".sh", ".cmake", ".md")) and os.path.basename(path) not in ("Makefile", "CMakeLists.txt"):
            continue
        with open(os.path.join(ROOT, path), encoding="utf-8", errors="replace") as file:
            text = file.read()
        if path != "tests/rules.py":
            for number, line in enumerate(text.splitlines(), 1):
                if UNFINISHED.search(line):
                    report(path, number, UNFINISHED.search(line).group())
        if path.endswith(SOURCES):
            check_includes(path, text)
            check_source(path, text)
            for name, place in types_of(path, text):
                types[name].append(place)
            formatted.append(path)
    check_names_are_once(types)
    check_api_is_tested(files)
    check_format(formatted)
    for problem in sorted(problems):
        print(problem)
    print(f"rules: {len(formatted)} sources, {size / (1 << 20):.1f} MiB tracked, {len(problems)} violations")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
