#!/usr/bin/env python3
"""Writes the licences of the crates that the binaries contain to standard output: each crate with its terms, each
text once. Reads `cargo metadata` for the build's own target, so tools for building and testing are left out."""

import glob
import hashlib
import json
import os
import subprocess
import sys

TARGET = "x86_64-unknown-linux-gnu"
NAMES = ("LICENSE*", "LICENCE*", "COPYING*", "COPYRIGHT*", "NOTICE*", "UNLICENSE*", "license*")


def linked(metadata):
    """Packages reachable from the root over ordinary dependencies."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    seen, todo = set(), [root]
    while todo:
        package = todo.pop()
        if package in seen:
            continue
        seen.add(package)
        for dependency in nodes[package]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                todo.append(dependency["pkg"])
    seen.remove(root)
    return seen


def main():
    cargo = os.environ.get("CARGO", "cargo")
    command = [cargo, "metadata", "--format-version=1", "--locked", "--filter-platform", TARGET]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    wanted = linked(metadata)
    packages = sorted((p for p in metadata["packages"] if p["id"] in wanted), key=lambda p: (p["name"], p["version"]))
    texts, faults = {}, []
    print("Crates in these binaries, with their terms. The texts follow, each once.\n")
    for package in packages:
        directory = os.path.dirname(package["manifest_path"])
        files = sorted({f for name in NAMES for f in glob.glob(os.path.join(directory, name)) if os.path.isfile(f)})
        terms = package["license"] or package["license_file"]
        if not terms:
            faults.append(f"{package['name']} {package['version']} states no licence")
        marks = []
        for file in files:
            with open(file, encoding="utf-8", errors="replace") as handle:
                text = handle.read().strip()
            mark = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:8]
            texts.setdefault(mark, text)
            marks.append(mark)
        print(f"{package['name']} {package['version']}: {terms}" + (f" [{', '.join(marks)}]" if marks else ""))
    for mark, text in sorted(texts.items()):
        print(f"\n{'=' * 100}\n[{mark}]\n\n{text}")
    if faults:
        sys.exit("\n".join(faults))


main()
