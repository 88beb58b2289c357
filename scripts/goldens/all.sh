#!/bin/sh
# Makes the goldens of the models anew, or compares what their referees say today with what is committed:
#   all.sh [--check] [transformers] [llama.cpp]
# With GOLDENS_PYTHON's packages, by default those of .venv-goldens (make goldens installs them). Needs zstd.
set -eu
cd "$(dirname "$0")/../.."
python=${GOLDENS_PYTHON:-.venv-goldens/bin/python}
check=
if [ "${1:-}" = --check ]; then check=--check; shift; fi
referees=${*:-transformers llama.cpp}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
data=tests/data

transformers() { "$python" scripts/goldens/from_transformers.py $data/hf-tiny $check; }

# what golden [options] files: prints the golden, or compares with it
peer() {
    what=$1 golden=$2
    shift 2
    if [ -n "$check" ]; then
        "$python" scripts/goldens/from_llama_cpp.py "$what" "$@" --check "$golden"
    else
        "$python" scripts/goldens/from_llama_cpp.py "$what" "$@" >"$work/golden.json"
        cp "$work/golden.json" "$golden"
        echo "$golden: written"
    fi
}

llama_cpp() {
    for folder in tiny tiny-quant; do
        mkdir "$work/$folder"
        for packed in $data/$folder/*.gguf.zst; do
            zstd -qd "$packed" -o "$work/$folder/$(basename "$packed" .zst)"
        done
    done
    tiny=$work/tiny
    peer tiny $data/tiny/golden.json --tokens $data/tiny/golden.json "$tiny"/*.gguf
    peer rope $data/tiny/rope.json --tokens $data/tiny/golden.json "$tiny/llama.gguf" "$tiny/qwen2.gguf"
    peer long $data/tiny/long.json "$tiny/deepseek2-v2.gguf" "$tiny/deepseek2-v3.gguf"
    peer quant $data/tiny-quant/golden.json --tokens $data/tiny-quant/golden.json "$work"/tiny-quant/*.gguf \
        models/omni-stories-q8_0.gguf models/omni-stories-q4_k_m.gguf
    peer types $data/tiny-types/golden.json --tokens $data/tiny/golden.json "$tiny/llama.gguf"
    peer hf $data/hf-tiny/llama-cpp.json --tokens $data/hf-tiny/ids.json $data/hf-tiny/*.gguf.zst
    peer pre $data/vocab/pre.json --text $data/vocab/ggml-vocab-gpt-2.gguf.inp $data/vocab/ggml-vocab-gpt-2.gguf.xz
    peer stories models/omni-stories.golden.json --text models/omni-stories-heldout.txt \
        models/omni-stories-f32.gguf models/omni-stories-f16.gguf models/omni-stories-q8_0.gguf models/omni-stories-q4_k_m.gguf
}

for referee in $referees; do
    case $referee in
    transformers) transformers ;;
    llama.cpp) llama_cpp ;;
    *) echo "all.sh: $referee is no referee; there are transformers and llama.cpp" >&2 && exit 2 ;;
    esac
done
