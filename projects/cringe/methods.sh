#!/bin/sh
# The table of methods of results.md: three seeds, two at a time with one thread each, one table at the end.
# Usage: sh projects/cringe/methods.sh [FOLDER_OF_REAL_DATA]      (called again after an interruption, it goes on)
# Without a folder it runs on the corpus that ships.
set -eu
data=${1:-}
parlai=${PARLAI:-.venv/bin/parlai}
recipe=cringe/methods name=methods
[ -z "$data" ] || { recipe=cringe/methods_real name=methods-real; }
mkdir -p runs
one() {
  OMP_NUM_THREADS=1 "$parlai" safety_methods --recipe "$recipe" ${data:+--data "$data"} --seed "$1" \
    --out "runs/$name-$1" >"runs/$name-$1.log" 2>&1
}
one 1 & first=$!
one 2 & second=$!
trap 'pkill -P "$first,$second" 2>/dev/null; kill "$first" "$second" 2>/dev/null; exit 130' INT TERM
failed=
wait "$first" || failed=1
one 3 || failed=1
wait "$second" || failed=1
[ -z "$failed" ] || { echo "a run failed or was stopped; see runs/$name-*.log" >&2; exit 1; }
"$parlai" safety_results --runs "runs/$name-1" "runs/$name-2" "runs/$name-3" --against "trained on"
