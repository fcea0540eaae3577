#!/bin/sh
# The numbers of results.md: real data, three seeds, one table. Usage: sh projects/cringe/run.sh FOLDER_OF_REAL_DATA
set -eu
data=${1:?name the folder that holds safety_labels.jsonl.gz and ordinary_dialogue.jsonl.gz}
parlai=${PARLAI:-.venv/bin/parlai}
for seed in 1 2 3; do
  "$parlai" safety_demo --recipe cringe/real --data "$data" --seed "$seed" --out "runs/cringe-real-$seed"
done
"$parlai" safety_results --runs runs/cringe-real-1 runs/cringe-real-2 runs/cringe-real-3
