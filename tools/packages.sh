#!/usr/bin/env bash
# System packages for a task: `packages.sh build|test|bench`. Installs what is missing when root on Debian, else names it.
set -euo pipefail

missing=()
need() { "${@:2}" >/dev/null 2>&1 || missing+=("$1"); }  # package, then a command that succeeds where it is there
header() { echo "#include <$1>" | ${CXX:-c++} -fsyntax-only -x c++ -std=c++20 -; }

need g++ command -v "${CXX:-c++}"
need python3-venv "${PYTHON:-python3}" -c "import ensurepip, venv"
case ${1:-build} in
  test) need libgtest-dev header gtest/gtest.h && need libgmock-dev header gmock/gmock.h ;;
  bench) need libbenchmark-dev header benchmark/benchmark.h ;;
esac

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
# Builds work without ccache, so it is no reason to stop.
if can_install && ! command -v ccache >/dev/null; then missing+=(ccache); fi

[ ${#missing[@]} = 0 ] && exit 0
if ! can_install; then
  echo "Missing system packages: ${missing[*]}. Install them, on Debian with: apt-get install ${missing[*]}" >&2
  exit 1
fi
echo "Installing system packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq </dev/null
apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null
