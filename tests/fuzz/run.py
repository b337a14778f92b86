#!/usr/bin/env python3
"""Runs fuzz targets one after the other and prints what each did: run.py BIN_DIR [--seconds N | --runs N] [NAME...]

Each target begins with the inputs in corpus/NAME, then changes them: for so many seconds each, or, with --runs, so many
times with a fixed seed (and 8 seconds at most), which does the same at every run. New inputs that reach new code are kept in BIN_DIR/corpus and
used again. What breaks a target is left in BIN_DIR/findings; exits 1 if there is anything."""
import argparse, pathlib, re, subprocess, sys

HERE = pathlib.Path(__file__).resolve().parent


def run(target, name, bin_dir, options):
    seeds, findings = HERE / "corpus" / name, bin_dir / "findings"
    findings.mkdir(exist_ok=True)
    command = [str(target), "-print_final_stats=1", "-timeout=20", "-rss_limit_mb=1024", "-malloc_limit_mb=512", "-max_len=16384",
               f"-artifact_prefix={findings}/{name}-"]
    words = HERE / f"{name}.dict"
    if words.exists():
        command.append(f"-dict={words}")
    if options.runs is not None:
        command += ["-seed=1", f"-runs={options.runs}", "-max_total_time=8"]
    else:
        kept = bin_dir / "corpus" / name
        kept.mkdir(parents=True, exist_ok=True)
        command += [f"-max_total_time={options.seconds}", str(kept)]
    if seeds.exists():
        command.append(str(seeds))
    if options.runs is not None:  # the first folder named would get the new inputs
        scratch = bin_dir / "scratch" / name
        scratch.mkdir(parents=True, exist_ok=True)
        for file in scratch.iterdir():
            file.unlink()
        command.insert(-1 if seeds.exists() else len(command), str(scratch))
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    stat = {k: int(v) for k, v in re.findall(r"^stat::(\w+):\s+(\d+)", done.stderr, re.MULTILINE)}
    cover = re.findall(r"cov: (\d+)", done.stderr) or ["?"]
    print(f"fuzz {name:16} {stat.get('number_of_executed_units', 0):9} executions, {stat.get('average_exec_per_sec', 0):6}/s, "
          f"coverage {cover[-1]}, {stat.get('peak_rss_mb', 0)} MB{'' if done.returncode == 0 else ', BROKEN'}", flush=True)
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if not re.match(r"#\d|\s*NEW_FUNC|stat::", line)]
        print("\n".join(told[-60:]))
    return done.returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bin_dir", type=pathlib.Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--runs", type=int, help="executions of each target, always the same ones")
    options = parser.parse_intermixed_args()  # names may follow options
    targets = {path.name.removeprefix("fuzz-"): path for path in sorted(options.bin_dir.glob("fuzz-*"))}
    if not targets:
        sys.exit(f"run.py: no fuzz-* in {options.bin_dir}; build them with `make fuzz`")
    results = [run(targets[name], name, options.bin_dir, options) for name in options.names or targets]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
