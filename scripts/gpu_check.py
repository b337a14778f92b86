"""On a machine with a GPU: builds for it, runs the tests on it, measures it, and writes one Markdown report.

  python3 scripts/gpu_check.py [--out build/gpu/report.md] [--minutes 9] [--architectures native] [--programs FOLDER]

Needs no network: what is not installed may lie in .deps/ (scripts/gpu_deps.sh fills it on another machine). A tool that is
missing is reported; exits 1 if a build or a test fails. --programs: an existing build instead of a new one.
"""
import argparse, os, pathlib, signal, subprocess, sys, time

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEPS = ROOT / ".deps"
TARGETS = ["dsv3-cli", "dsv3-convert", "bench-kernels", "dsv3-gpu-ops"]
LONGEST = 40  # lines of a failed command's output that the report shows


class Report:
    def __init__(self, path, minutes):
        self.path, self.end, self.failed = path, time.monotonic() + 60 * minutes, False
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    def write(self, *lines):
        text = "\n".join(lines) + "\n"
        print(text, end="", flush=True)
        with self.path.open("a") as file:
            file.write(text)

    def run(self, title, command, seconds, show=None, env=None, must=True):
        """Runs a command and writes its time and show(its output); returns whether it succeeded."""
        left = self.end - time.monotonic()
        if left < 5:
            self.write(f"- {title}: not run, no time left")
            return False
        start = time.monotonic()
        try:
            process = subprocess.Popen(list(map(str, command)), env={**os.environ, **(env or {})}, cwd=ROOT, stdout=subprocess.PIPE,
                                       stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True)
        except FileNotFoundError:
            self.write(f"- {title}: {command[0]} is missing")
            return False
        try:
            output = process.communicate(timeout=min(seconds, left))[0]
            ended = "" if process.returncode == 0 else f"exit {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with everything it has started
            output, ended = process.communicate()[0], "not finished: it took too long"
        self.write(f"- {title}: {ended or 'ok'}, {time.monotonic() - start:.0f} s")
        if ended:
            self.failed |= must and ended.startswith("exit")
            self.write("```", *output.splitlines()[-LONGEST:], "```")
        if show and output:
            self.write("", *show(output.splitlines()), "")
        return not ended


def table(lines):
    return [line for line in lines if line.startswith("|")]


def last(lines):
    return ["```", *lines[-4:], "```"]


def whole(lines):
    return ["```", *lines, "```"]


def environment():
    """Where compilers find what lies in .deps/."""
    if not DEPS.is_dir():
        return {}
    libraries = DEPS / "usr/lib/x86_64-linux-gnu"
    env = {"CMAKE_PREFIX_PATH": DEPS / "usr", "CPATH": DEPS / "usr/include", "LIBRARY_PATH": libraries,
           "PKG_CONFIG_LIBDIR": f"{libraries}/pkgconfig:{DEPS}/usr/share/pkgconfig", "PKG_CONFIG_SYSROOT_DIR": DEPS,
           "PKG_CONFIG_ALLOW_SYSTEM_CFLAGS": 1, "PKG_CONFIG_ALLOW_SYSTEM_LIBS": 1}
    env |= {"PKG_CONFIG": DEPS / "usr/bin/pkgconf", "LD_LIBRARY_PATH": libraries}
    return {name: str(value) for name, value in env.items()}


def build(report, architectures):
    folder = ROOT / "build/gpu"
    env = environment()
    jobs = str(len(os.sched_getaffinity(0)))
    if report.run("configure", ["cmake", "-S", ".", "-B", folder, "-DDSV3_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={architectures}",
                                "-DCMAKE_BUILD_TYPE=Release"], 60, env=env):
        if report.run("build", ["cmake", "--build", folder, "-j", jobs, "--target", *TARGETS], 300, env=env):
            return folder / "bin"
    return None


def machine(report):
    report.write("# A GPU at work", "", "## Machine", "")
    report.run("GPU", ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version,memory.total,clocks.sm", "--format=csv"], 30, whole,
               must=False)
    report.run("compiler", ["nvcc", "--version"], 30, last, must=False)
    report.run("processors", ["lscpu"], 10, lambda lines: whole([line for line in lines if "Model name" in line or line.startswith("CPU(s)")]),
               must=False)
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    report.write(f"- sources: {commit or 'not in a git repository'}", "")


def tests(report, programs):
    report.write("", "## Tests", "")
    for phase in ("decode", "prompt"):
        for backend in ("cuda", "cuda-fast"):
            report.run(f"ops, {backend}, {phase}", [programs / "dsv3-gpu-ops"], 60, last, {"DSV3_TEST_BACKEND": f"{backend}:{phase}"})
    report.run("golden models, hybrid runs", [sys.executable, "tests/cli/test_cuda.py", programs, "Golden", "Divided",
               "SameBits.test_cutting_and_batch_mates"], 120, last,
               {"DSV3_CUDA_PROGRAM": "dsv3"})


def sanitizer(report, programs, demo):
    report.write("", "## compute-sanitizer", "")
    run = [programs / "dsv3", "run", demo, "-q", "--backend", "cuda", "-p", "It is a truth", "--temp", "0"]
    for tool, tokens in (("memcheck", 8), ("racecheck", 2), ("synccheck", 2)):
        report.run(tool, ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *run, "-n", str(tokens)], 60, last)


def many_nodes(report, programs, model):
    """A step is one recording, and waits in the middle for the host: giving it to the driver must not block, however many nodes it
    has. In a prompt of 27 layers with their experts on the host it has thousands; the more when they are brought in groups."""
    for stream_from in (0, 1):
        report.run(f"a divided prompt of many nodes, --stream-from {stream_from}",
                   ["timeout", "-s", "KILL", 60, programs / "dsv3", "bench", model, "--backend", "cuda", "--repeat", 1, "--prompt", 512,
                    "--generate", 2, "--place", "routed_experts=cpu", "--stream-from", stream_from], 90, table)


def speed(report, programs, folder):
    report.write("", "## Kernels", "")
    report.run("bench-kernels", [programs / "bench-kernels", "--gpu", 0, "--rounds", 5], 120, table, must=False)
    report.write("", "## Models of random weights", "")
    for name, options, bench in (
            ("deepseek-v2-lite", [], [["--depth", "0,4096"]]),
            # Two of its layers with experts; then these on the host.
            ("deepseek-v3", ["--layers", 5], [["--depth", "0,4096"], ["--prompt", 0, "--place", "layers 3-4 routed_experts=cpu"]])):
        model = folder / f"{name}.dsv3"
        try:
            if not report.run(f"make {name}", [programs / "dsv3-convert", "-q", "--force", "--random", f"bench/configs/{name}.json", model,
                                               "--dtype", "f8", *options], 120, must=False):
                continue
            for extra in bench:
                report.run(f"{name} {' '.join(map(str, extra))}",
                           [programs / "dsv3", "bench", model, "--backend", "cuda", "--repeat", 3, *extra], 90, table, must=False)
            if name == "deepseek-v2-lite":
                many_nodes(report, programs, model)
        finally:
            model.unlink(missing_ok=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build/gpu/report.md")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--architectures", default="native")
    parser.add_argument("--programs", type=pathlib.Path)
    o = parser.parse_args()
    report = Report(o.out, o.minutes)
    machine(report)
    report.write("## Build", "")
    programs = o.programs.resolve() if o.programs else build(report, o.architectures)
    if programs:
        demo = o.out.parent.resolve() / "demo.dsv3"
        tests(report, programs)
        if report.run("convert the demo model", [programs / "dsv3-convert", "-q", "--force", "examples/demo-model", demo], 30):
            sanitizer(report, programs, demo)
        speed(report, programs, o.out.parent.resolve())
    report.write("", "Something failed; see above." if report.failed else "Every test passed.")
    print(f"report: {o.out}")
    sys.exit(report.failed)


main()
