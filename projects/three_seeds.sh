# Read by the scripts beside the results: a job with seeds 1, 2 and 3, two at a time with one thread each.
# Called again after an interruption, it goes on.
#   three_seeds COMMAND RECIPE NAME [FOLDER_OF_REAL_DATA]      the runs are runs/NAME-1, -2 and -3
parlai=${PARLAI:-.venv/bin/parlai}

one_seed() {
  OMP_NUM_THREADS=1 "$parlai" "$1" --recipe "$2" ${4:+--data "$4"} --seed "$5" --out "runs/$3-$5" >"runs/$3-$5.log" 2>&1
}

three_seeds() {
  mkdir -p runs
  one_seed "$1" "$2" "$3" "$4" 1 & first=$!
  one_seed "$1" "$2" "$3" "$4" 2 & second=$!
  trap 'pkill -P "$first,$second" 2>/dev/null; kill "$first" "$second" 2>/dev/null; exit 130' INT TERM
  failed=
  wait "$first" || failed=1
  one_seed "$1" "$2" "$3" "$4" 3 || failed=1
  wait "$second" || failed=1
  [ -z "$failed" ] || { echo "a run failed or was stopped; see runs/$3-*.log" >&2; exit 1; }
}
