"""On a machine with a GPU: builds for it, runs the tests on it, measures it, and writes one Markdown report.

  python3 scripts/gpu_check.py [--out build/gpu/report.md] [--minutes 9] [--architectures native] [--programs FOLDER]

Needs no network: what is not installed may lie in .deps/ (scripts/gpu_deps.sh fills it on another machine). Exits 1 if
a build or a test fails, takes too long or is not run; that compute-sanitizer is missing is only reported. --programs: an existing build instead of a new one.
"""
import argparse, concurrent.futures, os, pathlib, shutil, signal, subprocess, sys, time

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEPS = ROOT / ".deps"
TARGETS = ["dsv3-cli", "dsv3-convert", "bench-kernels", "dsv3-gpu-ops"]
# Of tests/cli/test_cuda.py: whole models in exact and in fast mode, models divided between GPU and host, the same bits.
MODEL_TESTS = ["Golden.test_short", "Golden.test_layer", "Golden.test_text", "Fast.test_golden", "Divided.test_text",
               "Divided.test_golden", "Divided.test_streamed", "SameBits.test_cutting_and_batch_mates", "SameBits.test_fast_mode"]
LONGEST = 40  # lines of a failed command's output that the report shows


class Report:
    def __init__(self, path, minutes):
        self.path, self.end, self.failed, self.not_run, self.missing = path, time.monotonic() + 60 * minutes, 0, 0, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    def write(self, *lines):
        text = "\n".join(lines) + "\n"
        print(text, end="", flush=True)
        with self.path.open("a") as file:
            file.write(text)

    def attempt(self, command, seconds, env=None):
        """Runs a command; (whether it was started, how it ended if not well, its output, seconds)."""
        start = time.monotonic()
        left = self.end - start
        if left < 5:
            return False, "not run, no time left", "", 0
        try:
            process = subprocess.Popen(list(map(str, command)), env={**os.environ, **(env or {})}, cwd=ROOT, stdout=subprocess.PIPE,
                                       stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True)
        except OSError as error:
            return False, f"not run, {command[0]}: {error.strerror}", "", 0
        try:
            output = process.communicate(timeout=min(seconds, left))[0]
            ended = "" if process.returncode == 0 else f"exit {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with everything it has started
            output, ended = process.communicate()[0], "not finished: it took too long"
        return True, ended, output, time.monotonic() - start

    def record(self, title, result, show=None, must=True):
        started, ended, output, seconds = result
        self.write(f"- {title}: {ended or 'ok'}" + (f", {seconds:.0f} s" if started else ""))
        if ended and must:
            self.failed += started
            self.not_run += not started
        self.missing += bool(ended) and not must
        if ended and output:
            self.write("```", *output.splitlines()[-LONGEST:], "```")
        if show and output:
            self.write("", *show(output.splitlines()), "")
        return not ended

    def run(self, title, command, seconds, show=None, env=None, must=True):
        """Runs a command and writes its time and show(its output); returns whether it succeeded. What `must` counts if it does
        not, for whatever reason."""
        return self.record(title, self.attempt(command, seconds, env), show, must)

    def run_together(self, commands, seconds, show=None, env=None):
        """The same for {title: command}, all at once."""
        with concurrent.futures.ThreadPoolExecutor(len(commands)) as pool:
            results = list(pool.map(lambda command: self.attempt(command, seconds, env), commands.values()))
        for title, result in zip(commands, results):
            self.record(title, result, show)

    def skip(self, title, why):
        """A step that there is no use in trying; it counts."""
        self.record(title, (False, f"not run, {why}", "", 0))

    def verdict(self):
        others = f" Of the steps that need not succeed {self.missing} did not." if self.missing else ""
        if not self.failed and not self.not_run:
            return "Every test passed." + others
        return f"Not passed: {self.failed} steps failed, {self.not_run} did not run; see above." + others


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
    report.run("sources", ["git", "describe", "--always", "--dirty"], 10, last, must=False)


def python_with_numpy():
    """What the tests of whole models need; None if no Python here has it."""
    for python in (sys.executable, "/usr/bin/python3"):
        if os.path.exists(python) and subprocess.run([python, "-c", "import numpy"], capture_output=True, check=False).returncode == 0:
            return python
    return None


def tests(report, programs):
    report.write("", "## Tests", "")
    for phase in ("decode", "prompt"):
        for backend in ("cuda", "cuda-fast"):
            report.run(f"ops, {backend}, {phase}", [programs / "dsv3-gpu-ops"], 60, last, {"DSV3_TEST_BACKEND": f"{backend}:{phase}"})
    # Dozens of processes each, most of whose time goes into starting: side by side.
    python = python_with_numpy()
    if not python:
        report.skip("whole models", "no Python here has numpy; install python3-numpy, or run this with one that has it")
        return
    report.run_together({name: [python, "tests/cli/test_cuda.py", programs, name] for name in MODEL_TESTS}, 150, last,
                        {"DSV3_CUDA_PROGRAM": "dsv3"})


def sanitizer(report, programs, demo):
    report.write("", "## compute-sanitizer", "")
    if not shutil.which("compute-sanitizer"):
        report.write("- compute-sanitizer is missing: no checks with it")
        return
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
                if name == "deepseek-v2-lite":
                    report.skip("divided prompts of many nodes", "there is no model for them")
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
        folder = o.out.parent.resolve()
        demo = folder / "demo.dsv3"
        tests(report, programs)
        speed(report, programs, folder)
        if report.run("convert the demo model", [programs / "dsv3-convert", "-q", "--force", "examples/demo-model", demo], 30):
            sanitizer(report, programs, demo)
        else:
            report.skip("compute-sanitizer", "there is no demo model")
    else:
        report.skip("all tests and measurements", "the programs were not built")
    report.write("", report.verdict())
    print(f"report: {o.out}")
    sys.exit(report.failed + report.not_run > 0)


main()
