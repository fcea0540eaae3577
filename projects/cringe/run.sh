#!/bin/sh
# The numbers of results.md: real data, three seeds at once with one thread each, one table at the end.
# Usage: sh projects/cringe/run.sh FOLDER_OF_REAL_DATA      (called again after an interruption, it goes on)
set -eu
data=${1:?name the folder that holds safety_labels.jsonl.gz and ordinary_dialogue.jsonl.gz}
parlai=${PARLAI:-.venv/bin/parlai}
mkdir -p runs
pids=
for seed in 1 2 3; do
  out=runs/cringe-real-$seed
  OMP_NUM_THREADS=1 "$parlai" safety_demo --recipe cringe/real --data "$data" --seed "$seed" --out "$out" \
    >"$out.log" 2>&1 &
  pids="$pids $!"
done
for pid in $pids; do
  wait "$pid" || { echo "a run failed or was stopped; see runs/cringe-real-*.log" >&2; exit 1; }
done
"$parlai" safety_results --runs runs/cringe-real-1 runs/cringe-real-2 runs/cringe-real-3
