#!/bin/sh
# Makes a virtual environment with the referees of the goldens, from nothing:
#   environment.sh FOLDER
# Needs Python 3 with venv, a C compiler and binutils (torch comes from PyPI without CUDA: 1.6 GB instead of 6), network for
# pip, and zstd for what runs in it. llama.cpp is built from its source, ten minutes on two cores (and a C++ compiler), unless
# LLAMA_CPP_LIB_PATH names a folder with libllama.so of the same version: then only its Python part is taken.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?usage: environment.sh FOLDER}
missing=
for tool in python3 cc readelf zstd; do
    command -v "$tool" >/dev/null || missing="$missing $tool"
done
[ -n "${LLAMA_CPP_LIB_PATH:-}" ] || command -v c++ >/dev/null || missing="$missing c++"
if [ -n "$missing" ]; then
    echo "environment.sh: missing:$missing (Debian: apt install python3-venv gcc g++ binutils zstd)" >&2
    exit 1
fi
python3 -m venv "$folder" || { echo "environment.sh: Python's venv module is missing (Debian: apt install python3-venv)" >&2; exit 1; }
pip() { "$folder/bin/python" -m pip install -q --disable-pip-version-check "$@"; }

version() { sed -n "s/^\($1==.*\)/\1/p" "$here/requirements.txt"; }
others=$(grep -Ev '^(#|torch==|llama-cpp-python==|$)' "$here/requirements.txt")
# shellcheck disable=SC2086 # a list of words
pip $others
pip --no-deps "$(version torch)"
"$folder/bin/python" "$here/cpu_torch.py" "$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
if [ -n "${LLAMA_CPP_LIB_PATH:-}" ]; then
    CMAKE_ARGS=-DLLAMA_BUILD=OFF pip --no-deps "$(version llama-cpp-python)"
else
    CMAKE_ARGS=-DGGML_NATIVE=ON pip --no-deps "$(version llama-cpp-python)"
fi
"$folder/bin/python" -c 'import gguf, llama_cpp, torch, transformers, zstandard' ||
    { echo "environment.sh: the packages above are there but one cannot be loaded" >&2; exit 1; }
