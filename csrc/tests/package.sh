#!/bin/sh
# The installed package, used in clean folders. Usage: package.sh STAGE BUILD SOURCE
set -eu
stage=$1 build=$2 source=$3
installed=$build/package/installed here=$build/package/$stage
examples=$source/examples/cpp
cxx=${CXX:-c++} cc=${CC:-cc}

skip() {
  echo "skipped: $1"
  exit 77
}

# The lines of both programs for these arguments: those of generate_c are the first of generate.
lines() {
  for arguments in "0 6" "7 1" "-3 40" "5 0"; do
    $2 "$1/generate" $arguments > "$1/one"
    $2 "$1/generate_c" $arguments > "$1/two"
    head -n 1 "$1/one" | cmp - "$1/two"
    cat "$1/one"
  done > "$1/lines"
}

with_pkg_config() {
  command -v pkg-config > /dev/null || skip "there is no pkg-config"
  PKG_CONFIG_PATH=$(dirname "$(find "$installed" -name edlm_cpu.pc)")
  export PKG_CONFIG_PATH
}

case $stage in
  install)
    rm -rf "$build/package"
    cmake --install "$build" --prefix "$installed" > "$build/install_log"
    exit 0 ;;
esac
rm -rf "$here"
mkdir -p "$here"
cd "$here"
case $stage in
  cmake)
    # A copy, so that nothing of the sources is near.
    cp -r "$examples" examples
    cmake -S examples -B . -DCMAKE_PREFIX_PATH="$installed" > log
    cmake --build . >> log
    lines "$here" "" ;;
  cuda)
    cmake -S "$source/csrc/tests/package_cuda" -B . -DCMAKE_PREFIX_PATH="$installed" > log
    cmake --build . >> log
    ./with_cuda
    ./with_cuda_static
    exit 0 ;;
  pkg_config)
    with_pkg_config
    $cxx -std=c++20 "$examples/generate.cpp" -o generate \
      $(pkg-config --cflags --libs edlm_cpu) -Wl,-rpath,"$(pkg-config --variable=libdir edlm_cpu)"
    $cc -std=c99 -Wall -Wextra -pedantic -Werror "$examples/generate.c" -o generate_c \
      $(pkg-config --cflags edlm_cpu) \
      "$(pkg-config --variable=libdir edlm_cpu)/libedlm_cpu.a" -lstdc++ -lm
    lines "$here" "" ;;
  headers)  # each alone, in both languages and without a warning
    with_pkg_config
    for header in "$installed"/include/edlm/*.h; do
      for compiler in "$cc -x c -std=c99" "$cxx -x c++ -std=c++17"; do
        case $compiler:$header in *"-x c -"*:*/philox.h | *"-x c -"*:*/row_sampling.h) continue ;; esac
        printf '#include "%s"\nint alone;\n' "$header" > alone
        $compiler -Wall -Wextra -pedantic -Werror $(pkg-config --cflags edlm_cpu) -fsyntax-only alone
      done
    done
    exit 0 ;;
  symbols)  # the API and nothing else
    for library in "$installed"/lib*/libedlm_*.so; do
      nm -DC --defined-only "$library" | grep -vE ' T (edlm_|edlm::(cpu|cuda)::[a-z_]+\()' && exit 1
      nm -DC --defined-only "$library" | grep -q ' T edlm_'
    done
    exit 0 ;;
  sanitized)
    with_pkg_config
    flags="-g -fsanitize=address,undefined -fno-sanitize-recover=undefined"
    $cxx -std=c++20 $flags "$examples/generate.cpp" -o generate \
      $(pkg-config --cflags --libs edlm_cpu) -Wl,-rpath,"$(pkg-config --variable=libdir edlm_cpu)"
    $cc -std=c99 $flags "$examples/generate.c" -o generate_c \
      $(pkg-config --cflags --libs edlm_cpu) -Wl,-rpath,"$(pkg-config --variable=libdir edlm_cpu)"
    lines "$here" ""
    # And with the library itself under the sanitizers.
    cp "$build/edlm_generate_sanitized" generate
    cp "$build/edlm_generate_c_sanitized" generate_c
    lines "$here" "" ;;
  valgrind)
    command -v valgrind > /dev/null || skip "there is no valgrind"
    cp "$build/package/cmake/generate" "$build/package/cmake/generate_c" .
    lines "$here" "valgrind --quiet --error-exitcode=1 --leak-check=full --show-leak-kinds=all" ;;
esac
cmp lines "$build/package/cmake/lines"
