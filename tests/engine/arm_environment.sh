#!/usr/bin/env bash
# Fill a folder with Python, PyTorch and numba for ARM, on which test_emulated.py then runs the engine:
#
#     apt-get install qemu-user gcc-aarch64-linux-gnu
#     tests/engine/arm_environment.sh FOLDER
#     CABM_TEST_ARM=FOLDER pytest -m slow tests/engine/test_emulated.py
#
# Needs Debian 12, or another system whose apt has the Python of the active virtual environment. Loads 0.7 GB
# from Debian and PyPI, takes 1.6 GB on disk, and installs nothing in the system.
set -euo pipefail
mkdir -p "${1:?the folder to fill}"
folder=$(realpath "$1")
constraints=$(realpath "$(dirname "$0")/../../constraints.txt")
version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# Debian's packages, unpacked by an apt that knows no installed package and no other architecture
apt=$folder/var/apt
mkdir -p "$apt/lists/partial" "$apt/archives/partial"
touch "$apt/status"
options=(-qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root
  -o Dir::State="$apt" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt")
apt-get "${options[@]}" update
apt-get "${options[@]}" install -y --download-only --no-install-recommends "python$version" libstdc++6 libgomp1
for package in "$apt"/archives/*.deb; do dpkg -x "$package" "$folder"; done
rm -r "$apt"

# qemu shows programs this instead of the file of the real CPU; LLVM and cabm read it
mkdir -p "$folder/proc"
cat >"$folder/proc/cpuinfo" <<'EOF'
processor	: 0
Features	: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x3
CPU part	: 0xd0c
EOF

# what cabm needs, but not the libraries for GPUs that PyTorch asks for
install=(python3 -m pip install -q --upgrade --no-deps --target "$folder/packages" -c "$constraints")
platforms=(--platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_26_aarch64
  --platform manylinux2014_aarch64)
"${install[@]}" --only-binary :all: "${platforms[@]}" --python-version "$version" \
  torch filelock fsspec jinja2 markupsafe mpmath networkx sympy typing_extensions numpy numba llvmlite pillow \
  pyvips-binary cffi pycparser pydantic pydantic_core annotated-types typing-inspection safetensors tqdm typer \
  click shellingham rich markdown-it-py mdurl pygments annotated-doc
"${install[@]}" pyvips # source only, without compiled code

# in place of those libraries, ones whose functions do nothing but return cudaErrorNoDevice
cd "$folder/packages/torch/lib"
code=$(aarch64-linux-gnu-nm -D --undefined-only ./*.so | sed -nE 's/.* U ((__cuda|cu|nccl|nv)\w*[^_@])(@.*)?$/\1/p' |
  sort -u | sed 's/.*/int &(void) { return 100; }/')
needed=$(aarch64-linux-gnu-readelf -d ./*.so | sed -nE 's/.*NEEDED.*\[(lib(cu|nccl|nv)[^]]*)\]/\1/p' | sort -u)
for library in $needed; do
  [ -e "$library" ] && continue # PyTorch brings some itself
  symbols=$library              # the version of the symbols; these libraries name it as the file
  [ "$library" = libnvshmem_host.so.3 ] && symbols=NVSHMEM
  aarch64-linux-gnu-gcc -shared -fPIC -nostdlib -w -Wl,-soname,"$library" \
    -Wl,--version-script=<(echo "$symbols { *; };") -o "$library" -x c - <<<"$code"
done
