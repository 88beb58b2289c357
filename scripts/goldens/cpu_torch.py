#!/usr/bin/env python3
"""Makes PyPI's torch load without the four gigabytes of CUDA libraries that it names.

  pip install --no-deps torch
  cpu_torch.py SITE_PACKAGES

torch from PyPI is built for GPUs: its libraries name those of CUDA, although nothing on the CPU calls them. For each named
library that is nowhere, an empty one is compiled into torch/lib: the same name, the same symbols and versions, and every
function returns 100, cudaErrorNoDevice. The referees need no more. Needs a C compiler and readelf (binutils).
"""
import glob, os, re, shutil, subprocess, sys, tempfile

NO_DEVICE = 100
# Symbols of CUDA's libraries where no version says whose they are.
UNVERSIONED = re.compile(r"_{0,2}(cu|nv|nccl|CUPTI|cudnn|fat)")


def readelf(option, path):
    return subprocess.run(["readelf", "-W", option, path], capture_output=True, text=True, check=True).stdout


def needed(path):
    """Names of the libraries that one names."""
    return re.findall(r"\(NEEDED\).*\[(.*?)\]", readelf("-d", path))


def owners(path):
    """Which library has each version that one asks for."""
    found, owner = {}, None
    for line in readelf("-V", path).splitlines():
        if match := re.search(r"File: (\S+)", line):
            owner = match.group(1)
        elif owner and (match := re.search(r"Name: (\S+)", line)):
            found[match.group(1)] = owner
    return found


def symbols(path):
    """(name, version, whether it is defined here) of each dynamic symbol."""
    for line in readelf("--dyn-syms", path).splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[0].rstrip(":").isdigit():
            name, _, version = fields[7].partition("@")
            yield name, version.strip("@"), fields[6] != "UND"


def compile_empty(target, names):
    """A library of functions that return NO_DEVICE; `names` has each one's version, "" for none."""
    versions = sorted(set(names.values()) - {""})
    nodes = ["%s { global: %s; };" % (v, "; ".join(sorted(n for n in names if names[n] == v))) for v in versions]
    with tempfile.TemporaryDirectory() as folder:
        source, script = os.path.join(folder, "empty.c"), os.path.join(folder, "versions.map")
        with open(source, "w") as file:
            file.write("".join(f"long {name}(void) {{ return {NO_DEVICE}; }}\n" for name in sorted(names)))
        with open(script, "w") as file:
            file.write("\n".join(nodes) or "{ global: *; };")
        subprocess.check_call([os.environ.get("CC", "cc"), "-w", "-shared", "-fPIC", "-fno-builtin", "-o", target, source,
                               f"-Wl,-soname,{os.path.basename(target)}", f"-Wl,--version-script={script}"])


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch = os.path.join(sys.argv[1], "torch")
    libraries = os.path.join(torch, "lib")
    objects = glob.glob(f"{libraries}/*.so*") + glob.glob(f"{torch}/_C*.so")
    if not objects:
        sys.exit(f"cpu_torch.py: no torch in {sys.argv[1]}: pip install --no-deps torch first")
    for tool in ("readelf", os.environ.get("CC", "cc")):
        if not shutil.which(tool):
            sys.exit(f"cpu_torch.py: {tool} is missing: install a C compiler and binutils")
    present = {os.path.basename(path) for path in objects}
    system = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout
    wanted = {name for path in objects for name in needed(path)} - present
    wanted = sorted(name for name in wanted if name not in system and not name.startswith("ld-linux"))
    if not wanted:
        return
    tables = [(owners(path), list(symbols(path))) for path in objects]
    defined = {name for _, table in tables for name, _, here in table if here}
    other = next((name for name in wanted if name.startswith("libcudart")), wanted[0])
    empty = {name: {} for name in wanted}
    for owner, table in tables:
        for name, version, here in table:
            if here or name in defined:
                continue
            if owner.get(version) in empty:
                empty[owner[version]][name] = version
            elif not version and UNVERSIONED.match(name):
                empty[other].setdefault(name, "")
    for name, names in empty.items():
        compile_empty(os.path.join(libraries, name), names)
    print(f"cpu_torch.py: {len(wanted)} libraries of CUDA replaced by empty ones, with {sum(map(len, empty.values()))} functions")


if __name__ == "__main__":
    main()
