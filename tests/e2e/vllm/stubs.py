"""Writes empty libraries in place of the GPU ones that torch was linked with, 2 GB that a CPU never calls.

    python stubs.py SITE_PACKAGES

Every symbol that torch's libraries want of them is there, in the version they ask for, and answers with an error
code. libcuda itself stays absent: torch looks for it and finds that there is no GPU.
"""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

GPU_LIBRARY = re.compile(r"^lib(cu|nv|nccl)")
GPU_SYMBOL = re.compile(r"^(cu|nv|nccl|_*cuda|__nv)")
TEXT = re.compile("ErrorString|ErrorName|LastErrorMsg")
REAL = ("libcuda.so", "libcudart.so")  # Absent on purpose; installed from its wheel.


def lines(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def needs(library):
    return {m[1] for line in lines("readelf", "-dW", library) if (m := re.search(r"\(NEEDED\).*\[(.+)\]", line))}


def version_owners(library):
    """Version node to the library that it is asked of."""
    owner, out = "", {}
    for line in lines("readelf", "-VW", library):
        if m := re.search(r"File: (\S+)", line):
            owner = m[1]
        if (m := re.search(r"Name: (\S+)", line)) and GPU_LIBRARY.match(owner):
            out[m[1]] = owner
    return out


def wanted(libraries):
    """Library to {symbol: version or None}."""
    owners, versioned, plain, defined = {}, [], set(), set()
    for library in libraries:
        owners.update(version_owners(library))
        for line in lines("nm", "-D", "--undefined-only", library):
            symbol, _, version = line.split()[-1].partition("@")
            if version:
                versioned.append((symbol, version.lstrip("@")))
            elif GPU_SYMBOL.match(symbol):
                plain.add(symbol)
        defined |= {line.split()[-1].partition("@")[0] for line in lines("nm", "-D", "--defined-only", library)}
    names = sorted({name for library in libraries for name in needs(library) if GPU_LIBRARY.match(name)})
    out = {name: {} for name in names if not name.startswith(REAL)}
    for symbol, version in versioned:
        if owners.get(version) in out:
            out[owners[version]][symbol] = version
    first = next(iter(out))
    out[first].update({symbol: None for symbol in plain - defined if symbol not in out[first]})
    return out


def write(folder, name, symbols):
    source, script = folder / "stub.c", folder / "stub.map"
    body = ['static const char told[] = "there is no GPU: this library is empty";']
    nodes = defaultdict(list)
    for symbol, version in symbols.items():
        body.append(f"const char* {symbol}() {{ return told; }}" if TEXT.search(symbol) else f"long {symbol}() {{ return 100; }}")
        if version:
            nodes[version].append(symbol)
    source.write_text("\n".join(body) + "\n")
    command = ["gcc", "-shared", "-fPIC", "-w", "-O1", "-fno-builtin", "-o", folder / name, source, f"-Wl,-soname,{name}"]
    if nodes:
        script.write_text("".join(f"{node} {{ global: {' '.join(s + ';' for s in names)} }};\n" for node, names in nodes.items()))
        command.append(f"-Wl,--version-script={script}")
    subprocess.run(command, check=True)
    source.unlink()
    script.unlink(missing_ok=True)


def main():
    packages = Path(sys.argv[1])
    folder = packages / "nvidia/cu13/lib"
    folder.mkdir(parents=True, exist_ok=True)
    for name, symbols in wanted(sorted((packages / "torch/lib").glob("*.so"))).items():
        write(folder, name, symbols)
        print(f"{name}: {len(symbols)} symbols")


main()
