#!/bin/bash
# A shell that knows nothing of Towpath: reads COUNT lines from a FIFO and says when each came.
# Usage: read_fifo.sh FIFO COUNT
set -u
exec 3<"$1"
echo ready
n=0
while [ "$n" -lt "$2" ] && IFS= read -r -t 30 line <&3; do
  echo "$EPOCHREALTIME $line"
  n=$((n + 1))
done
