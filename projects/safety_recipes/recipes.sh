#!/bin/sh
# The table of results.md: three seeds, two at a time with one thread each.
# Usage: sh projects/safety_recipes/recipes.sh [FOLDER_OF_REAL_DATA]      (called again after an interruption, it goes on)
# Without a folder it runs on the corpus that ships.
set -eu
. "$(dirname "$0")/../three_seeds.sh"
data=${1:-}
recipe=safety_recipes/recipes name=recipes
[ -z "$data" ] || { recipe=safety_recipes/recipes_real name=recipes-real; }
three_seeds safety_recipes "$recipe" "$name" "$data"
set -- --runs "runs/$name-1" "runs/$name-2" "runs/$name-3"
"$parlai" safety_results "$@" --means true --against base --plot "runs/$name-frontier.png"
