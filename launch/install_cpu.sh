#!/bin/sh
# Sets up everything for CPU training and tests in a virtual environment: launch/install_cpu.sh PYTHON VENV
set -eu
python=$1
venv=$2
here=$(cd "$(dirname "$0")" && pwd)
log="$venv/install.log"

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "llmrl needs Python 3.11 or newer; $python is $("$python" -V 2>&1). Try: make install PYTHON=python3.12" >&2
    exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || {
    echo "cannot create $venv; on Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
}

step() {
    echo "install: $1"
    shift
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-compile --progress-bar off "$@" >>"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        echo "install failed; the whole log is $log" >&2
        exit 1
    }
}

# torch comes first and alone, so that nothing else decides which build of it is fetched. The lock is complete and is
# installed without dependencies: that keeps torchvision, torchaudio and torchcodec out, which vLLM's CPU build asks for,
# no text model needs, and whose builds on PyPI do not match a CPU torch. Nothing is compiled ahead (a third of the time, most
# of it for modules that are never imported): Python compiles what it imports, and the last line imports what most need.
: >"$log"
step "torch 2.13.0" torch==2.13.0
step "vLLM for CPUs, transformers and the rest (a few minutes, about 4 GB)" --no-deps -r "$here/cpu-lock.txt"
step "llmrl" --no-deps --no-build-isolation -e "$here/.."
"$venv/bin/python" -c 'import torch, transformers, trl, peft, datasets, vllm, llmrl' 2>>"$log" || {
    tail -n 20 "$log" >&2
    echo "the installed packages do not import; the whole log is $log" >&2
    exit 1
}
