#!/bin/sh
# The numbers of results.md: two linear judges and the toxicity scorer on real data, seed 1, each with its card.
# Usage: sh projects/judges/run.sh FOLDER_OF_REAL_DATA      (about two and a half minutes on one core)
set -eu
data=${1:?name the folder with safety_labels, ordinary_dialogue, scored_comments and toxicity_prompts (.jsonl.gz)}
parlai=${PARLAI:-.venv/bin/parlai}
out=${OUT:-runs/judges}
# The cards that training left beside the judges stay; those measured here go to a folder of their own.
export OMP_NUM_THREADS=1 SAFETY_CARDS="$out/cards"
mkdir -p "$out/cards"
cat "$data/wordlist/en" >"$out/words.txt"
"$parlai" safety_judges --data "$data" --out "$out" --seed 1 >"$out/judges.log"
"$parlai" safety_toxicity --data "$data" --out "$out/toxicity.npz" --seed 1 --markdown true >"$out/toxicity.log"
{
  for judge in "linear:$out/grader.npz" "linear:$out/labeller.npz" "wordlist:$out/words.txt"; do
    printf '\n## %s, on labelled replies\n\n' "${judge%%:*}: ${judge##*/}"
    "$parlai" safety_judge_card --judge "$judge" --data "$data" --out "$out/cards/${judge##*/}.json" --markdown true
  done
  printf '\n## toxicity, on held-out scores of Perspective\n\n'
  cat "$out/toxicity.log"
  printf '\n## toxicity, on labelled replies\n\n'
  "$parlai" safety_judge_card --judge "toxicity:$out/toxicity.npz" --data "$data" --seed 1 \
    --out "$out/cards/toxicity.npz.json" --markdown true
} >"$out/results.md"
cat "$out/results.md"
