#!/bin/sh
# The tables and the plot of results.md: three seeds, two at a time with one thread each.
# Usage: sh projects/adpo/adpo.sh [FOLDER_OF_REAL_DATA]      (called again after an interruption, it goes on)
# Without a folder it runs on the corpus that ships.
set -eu
. "$(dirname "$0")/../three_seeds.sh"
data=${1:-}
recipe=adpo/adpo name=adpo
[ -z "$data" ] || { recipe=adpo/adpo_real name=adpo-real; }
three_seeds safety_adpo "$recipe" "$name" "$data"
set -- --runs "runs/$name-1" "runs/$name-2" "runs/$name-3"
"$parlai" safety_results "$@" --means true --against "DPO (chosen, rejected)" --plot "runs/$name-frontier.png"
"$parlai" safety_results "$@" --learning true
