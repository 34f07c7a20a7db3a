#!/bin/sh
# Runs the compile command it is given and keeps what ptxas says in OBJECT.ptxas.
object=$(printf '%s\n' "$@" | grep -A1 -x -e -o | tail -n 1)
"$@" 2>"$object.log"
status=$?
grep -e '^ptxas' -e 'bytes stack frame' "$object.log" >"$object.ptxas"
grep -v -e '^ptxas info' -e 'bytes stack frame' -e '^$' "$object.log" >&2
rm "$object.log"
exit $status
