#!/bin/sh
# The table of methods of results.md: three seeds, two at a time with one thread each, one table at the end.
# Usage: sh projects/cringe/methods.sh [FOLDER_OF_REAL_DATA]      (called again after an interruption, it goes on)
# Without a folder it runs on the corpus that ships.
set -eu
. "$(dirname "$0")/../three_seeds.sh"
data=${1:-}
recipe=cringe/methods name=methods
[ -z "$data" ] || { recipe=cringe/methods_real name=methods-real; }
three_seeds safety_methods "$recipe" "$name" "$data"
"$parlai" safety_results --runs "runs/$name-1" "runs/$name-2" "runs/$name-3" --against "trained on"
