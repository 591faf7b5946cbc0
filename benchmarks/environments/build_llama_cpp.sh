#!/usr/bin/env bash
# llama.cpp's server into an environment's bin/, from the sources that llama-cpp-python ships on PyPI: its wheel has
# no server but Python's own, which runs one request at a time. Needs a C++ compiler; takes about ten minutes.
set -euo pipefail
environment=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
version=$(sed -n 's/^llama-cpp-python==//p' "$here/llama_cpp-sources.txt")

"$environment/bin/python" -m pip install --disable-pip-version-check -r "$here/llama_cpp.txt"
export PATH="$environment/bin:$PATH"
mkdir -p "$environment/src"
pip download --disable-pip-version-check --no-deps --no-build-isolation --no-binary :all: \
	--dest "$environment/src" -r "$here/llama_cpp-sources.txt"
tar -C "$environment/src" -xzf "$environment/src/llama_cpp_python-$version.tar.gz"
cd "$environment/src/llama_cpp_python-$version/vendor/llama.cpp"
cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
	-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_WEBUI=OFF -DLLAMA_BUILD_UI=OFF
ninja -C build llama-server
ln -sf "$PWD/build/bin/llama-server" "$environment/bin/llama-server"
