#!/bin/sh
# broken_copy.sh KERNELS COPY FAULT: copies the folder KERNELS to COPY and breaks the copy on purpose.
set -e
case $3 in
  removed_barrier)
    file=row_pass.cuh edit='/^  Team<kWarps>::sync();$/d' ;;
  removed_barrier_between_passes)
    file=nucleus.cuh edit='/digit = digit/,/sync_block/{/sync_block/d}' ;;
  32_bit_row_index)
    file=row.cuh edit='s/ + r \* args\.row_stride;/ + uint32_t(r * args.row_stride);/' ;;
  off_by_one_at_the_last_cell)
    file=row.cuh edit='s/return id < vocab ?/return id < vocab - 1 ?/' ;;
  *)
    echo "unknown fault $3" >&2
    exit 1 ;;
esac
mkdir -p "$2"
cp "$1"/*.cu "$1"/*.cuh "$2"
sed "$edit" "$1/$file" >"$2/$file"
if cmp -s "$1/$file" "$2/$file"; then
  echo "$3: nothing in $file to break" >&2
  exit 1
fi
touch "$2/broken"
