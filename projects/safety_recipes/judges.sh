#!/bin/sh
# The tables of judges.md: two transformers from scratch, then every judge on real labelled talk.
# Usage: sh projects/safety_recipes/judges.sh FOLDER_OF_REAL_DATA      (called again, it trains no transformer twice)
set -eu
data=${1:?name the folder with safety_labels and ordinary_dialogue (.jsonl.gz)}
parlai=${PARLAI:-.venv/bin/parlai} python=${PYTHON:-.venv/bin/python}
out=${OUT:-runs/recipe-judges}
here=$(dirname "$0")
export OMP_NUM_THREADS=1
mkdir -p "$out"
"$python" "$here/judges.py" mix "$data" "$out/mix"
for turns in 1 4; do
  [ -e "$out/turns-$turns/done" ] || {
    "$parlai" train_model -m safety:judge -t safety:labels:classifier --safety-datapath "$out/mix" \
      --context-turns "$turns" --class-weights 1 2 --n-layers 1 --embedding-size 64 --ffn-size 128 --n-heads 2 \
      --dropout 0.1 --truncate 64 --dict-maxtokens 8000 --optimizer adam --learningrate 0.001 --lr-scheduler fixed \
      --batchsize 32 --max-train-steps 1500 --validation-every-n-steps 500 --validation-max-exs 1500 \
      --validation-metric class___notok___f1 --validation-metric-mode max --short-final-eval true \
      --model-file "$out/turns-$turns/model" >"$out/turns-$turns.log" 2>&1
    touch "$out/turns-$turns/done"
  }
done
"$python" "$here/judges.py" table "$data" \
  "transformer, reply alone=$out/turns-1/model" "transformer, 4 turns=$out/turns-4/model" | tee "$out/judges.txt"
