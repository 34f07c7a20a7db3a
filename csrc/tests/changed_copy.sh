#!/bin/sh
# changed_copy.sh KERNELS COPY CHANGE: copies the folder KERNELS to COPY and changes the copy: breaks it
# on purpose, or turns on what no GPU has run yet.
set -e
case $3 in
  removed_barrier)
    files=row_pass.cuh edit='/^  Team<kWarps>::sync();$/d' ;;
  removed_barrier_between_passes)
    files=cuts.cuh edit='/digit = digit_of(low/,/sync_block/{/sync_block/d}' ;;
  removed_barrier_before_the_residual)
    files=residual_draw.cuh edit='/^  Team<kWarps>::sync();$/d' ;;
  32_bit_row_index)
    files=row.cuh edit='s/ + r \* args\.row_stride;/ + uint32_t(r * args.row_stride);/' ;;
  off_by_one_at_the_last_cell)
    files=row.cuh edit='s/return id < vocab ?/return id < vocab - 1 ?/' ;;
  bulk_copies)
    files=row_pass.cuh edit='s/kBulkCopies = false/kBulkCopies = true/' ;;
  bulk_copies_without_a_wait)
    files='row_pass.cuh row_ring.cuh'
    edit='s/kBulkCopies = false/kBulkCopies = true/;/  bulk_wait(/d' ;;
  dependent_launch)
    files=row_launch.cuh edit='s/kDependentLaunch = false/kDependentLaunch = true/' ;;
  dependent_launch_without_a_wait)
    files='row_launch.cuh sample_candidates.cuh'
    edit='s/kDependentLaunch = false/kDependentLaunch = true/;/wait_for_previous_kernel();/d' ;;
  *)
    echo "unknown change $3" >&2
    exit 1 ;;
esac
mkdir -p "$2"
cp "$1"/*.cu "$1"/*.cuh "$2"
for file in $files; do
  sed "$edit" "$1/$file" >"$2/$file"
  if cmp -s "$1/$file" "$2/$file"; then
    echo "$3: nothing in $file to change" >&2
    exit 1
  fi
done
touch "$2/changed"
