"""What `make install` leaves: found by CMake and by pkg-config from outside, and nothing visible but the C API."""
import re

from support import *

HEADER = ROOT / "dsv3.h"
BUILD = pathlib.Path(os.environ.get("DSV3_BUILD") or next(
    p for p in (BIN.parent, BIN.parent / "release") if (p / "CMakeCache.txt").exists()))
CACHE = dict(re.findall(r"^(\w+):\w+=(.*)$", (BUILD / "CMakeCache.txt").read_text(), re.MULTILINE))
SANITIZED = any(CACHE.get(f"DSV3_{name}") == "ON" for name in ("SANITIZE", "TSAN"))
CC, CXX = CACHE["CMAKE_C_COMPILER"], CACHE["CMAKE_CXX_COMPILER"]

# A program outside the project: what the library says, and a text.
CMAKE_PROJECT = """
cmake_minimum_required(VERSION 3.16)
project(outside LANGUAGES C CXX)
find_package(dsv3 0.1 REQUIRED COMPONENTS static)
add_executable(shared embed.c)
target_link_libraries(shared PRIVATE dsv3::dsv3)
add_executable(static embed.c)
target_link_libraries(static PRIVATE dsv3::static)
"""
C_PROJECT = """
cmake_minimum_required(VERSION 3.16)
project(outside LANGUAGES C)
find_package(dsv3 REQUIRED)
add_executable(shared embed.c)
target_link_libraries(shared PRIVATE dsv3::dsv3)
"""


def run(*command, **options):
    result = subprocess.run(list(map(str, command)), capture_output=True, timeout=600, **options)
    assert result.returncode == 0, f"{command}: {result.stdout.decode()}{result.stderr.decode()}"
    return result.stdout.decode()


@functools.cache
def installed():
    """Installed with a DESTDIR, and then moved: nothing may remember where it was to be."""
    env = {**os.environ, "DESTDIR": str(TEMP / "stage")}
    run("cmake", "--install", BUILD, "--prefix", "/opt/dsv3", env=env)
    shutil.move(TEMP / "stage/opt/dsv3", TEMP / "moved")
    return TEMP / "moved"


def declared():
    return set(re.findall(r"^DSV3_API [^;(]*?\b(dsv3_\w+)\(", HEADER.read_text(), re.MULTILINE))


class Header(unittest.TestCase):
    def test_alone_with_every_warning(self):
        source = TEMP / "alone"
        warnings = "-Wall -Wextra -pedantic -Werror -Wconversion -Wshadow -Wundef -Wcast-align -Wwrite-strings".split()
        for compiler in {CC, *filter(None, map(shutil.which, ("gcc", "clang")))}:
            with self.subTest(compiler):
                source.with_suffix(".c").write_text('#include "dsv3.h"\nint main(void) { return dsv3_abi_version() != DSV3_ABI_VERSION; }\n')
                run(compiler, "-std=c99", *warnings, "-Wstrict-prototypes", "-Wmissing-prototypes", "-fsyntax-only", "-I", ROOT,
                    source.with_suffix(".c"))
        for compiler in {CXX, *filter(None, map(shutil.which, ("g++", "clang++")))}:
            for standard in ("c++11", "c++20"):
                with self.subTest(compiler, standard=standard):
                    source.with_suffix(".cpp").write_text('#include "dsv3.h"\nint main() { return dsv3_abi_version() != DSV3_ABI_VERSION; }\n')
                    run(compiler, "-std=" + standard, *warnings, "-fsyntax-only", "-I", ROOT, source.with_suffix(".cpp"))


class Symbols(unittest.TestCase):
    def test_only_the_api_is_visible(self):
        lines = run("nm", "-D", "--defined-only", installed() / "lib/libdsv3.so").splitlines()
        self.assertEqual({line.split()[-1] for line in lines}, declared())
        self.assertGreater(len(declared()), 30)

    def test_name(self):
        abi = re.search(r"#define DSV3_ABI_VERSION (\d+)", HEADER.read_text()).group(1)
        self.assertIn(f"[libdsv3.so.{abi}]", run("readelf", "-d", installed() / "lib/libdsv3.so"))
        self.assertTrue((installed() / f"lib/libdsv3.so.{abi}").exists())


@unittest.skipIf(SANITIZED, "a sanitizer's library wants a sanitizer's program")
class Outside(unittest.TestCase):
    row = EXPECTED["greedy"][0]

    def writes_the_text(self, program):
        out = run(program, packed(DEMO), self.row["prompt"], len(self.row["new_ids"]),
                  env={**os.environ, "LD_LIBRARY_PATH": str(installed() / "lib")})
        self.assertEqual(out, self.row["text"] + "\n")

    def configured(self, name, text):
        source = TEMP / name
        source.mkdir()
        (source / "CMakeLists.txt").write_text(text)
        shutil.copy(ROOT / "examples/embed.c", source)
        run("cmake", "-S", source, "-B", source / "build", f"-DCMAKE_PREFIX_PATH={installed()}", f"-DCMAKE_C_COMPILER={CC}",
            f"-DCMAKE_CXX_COMPILER={CXX}", "-DCMAKE_BUILD_TYPE=Release")
        run("cmake", "--build", source / "build")
        return source / "build"

    def test_cmake(self):
        build = self.configured("both", CMAKE_PROJECT)
        self.writes_the_text(build / "shared")
        self.writes_the_text(build / "static")
        self.assertNotIn("libdsv3.so", run("readelf", "-d", build / "static"))

    def test_cmake_without_cxx(self):
        self.writes_the_text(self.configured("c", C_PROJECT) / "shared")

    def test_pkg_config(self):
        env = {**os.environ, "PKG_CONFIG_PATH": str(installed() / "lib/pkgconfig")}
        program = TEMP / "by-pkg-config"
        run("sh", "-c", f"{CC} {ROOT}/examples/embed.c $(pkg-config --cflags --libs dsv3) -o {program}", env=env)
        self.writes_the_text(program)
        flags = run("pkg-config", "--static", "--libs", "dsv3", env=env)
        run("sh", "-c", f"{CC} {ROOT}/examples/embed.c $(pkg-config --cflags dsv3) {flags.strip().replace('-ldsv3', '-l:libdsv3.a')} "
            f"-o {program}", env=env)
        self.writes_the_text(program)
        self.assertNotIn("libdsv3.so", run("readelf", "-d", program))

    def test_installed_programs(self):
        self.assertIn("dsv3", run(installed() / "bin/dsv3", "--version"))
        self.assertTrue((installed() / "bin/dsv3-convert").exists())
        code = "import dsv3; print(dsv3.version())"
        out = run("/usr/bin/python3", "-c", code, env={**os.environ, "PYTHONPATH": str(installed() / "share/dsv3/python")})
        self.assertTrue(out.startswith("dsv3 "), out)


if __name__ == "__main__":
    main()
