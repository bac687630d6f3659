#!/usr/bin/env bash
# Trains, gates and keeps what came of it. For any CI that runs a shell:
#
#   docs/ci.sh SPEC GATE…            docs/ci.sh photos.yaml 'accuracy_low<0.80' 'calibrated_ece>0.10'
#
#   - run: pip install 'transferctl[onnx]'
#   - run: docs/ci.sh photos.yaml 'accuracy_low<0.80'
#   - uses: actions/upload-artifact@v4
#     if: always()
#     with: {name: model, path: artefacts}
#
# A gate that holds fails the job: exit 8. The gates look at test data if the spec has some, else at validation data.
# Environment: VERB (extract; or finetune, FROM a run if that is set), ARTEFACTS (artefacts), RUNS (runs), FORMATS (of the export: all; or such as "onnx pt2"),
# AGAINST (the run in use: is the new one any better?), TRANSFERCTL_CACHE (a folder to keep between jobs: nothing that is
# frozen is computed twice).
set -euo pipefail

spec=${1:?name a SPEC and gates, such as: ci.sh photos.yaml "accuracy_low<0.80"}
shift
artefacts=${ARTEFACTS:-artefacts}
runs=${RUNS:-runs}
mkdir -p "$artefacts"

gates=()
for gate in "$@"; do gates+=(--fail-if "$gate"); done
if [ -n "${AGAINST:-}" ]; then gates+=(--against "$AGAINST"); fi

formats=()
for format in ${FORMATS:-}; do formats+=(--format "$format"); done

keep() {   # whatever there is of a run, under a name of ours if it has one already
  for file in report.html summary.json metrics.jsonl environment.json spec.yaml classes.json predictions.csv log.txt; do
    if [ -e "$1/$file" ]; then cp "$1/$file" "$artefacts/${2:-}$file"; fi
  done
}
end() {    # what happened, for people; the exit code is for the job
  echo "$2"
  if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then echo "$2" >> "$GITHUB_STEP_SUMMARY"; fi
  exit "$1"
}

transferctl check "$spec" --json > "$artefacts/check.json" || end $? "$spec: cannot be trained, see $artefacts/check.json"
code=0
run=$(transferctl "${VERB:-extract}" "$spec" ${FROM:+--from "$FROM"} --runs-dir "$runs" | tail -n 1) || code=$?
if [ "$code" != 0 ]; then
  run=$(ls -d "$runs"/*-"${VERB:-extract}"-* 2> /dev/null | tail -n 1)
  keep "${run:-.none}"
  end "$code" "$spec: training ended with exit code $code, see $artefacts/log.txt"
fi
keep "$run"

split=val
if python3 -c 'import json, sys; sys.exit("test" not in json.load(open(sys.argv[1])))' "$run/summary.json"; then split=test; fi
transferctl eval "$run" --split "$split" ${gates[@]+"${gates[@]}"} --runs-dir "$runs" --json > "$artefacts/eval.json" || code=$?
keep "$(ls -d "$runs"/*-eval-* 2> /dev/null | tail -n 1)" evaluation-
exported=0
transferctl export "$run" ${formats[@]+"${formats[@]}"} --out "$artefacts/model" --json > "$artefacts/export.json" || exported=$?

case $code in
  0) if [ "$exported" != 0 ]; then end "$exported" "$run: passed, but could not be exported, see $artefacts/export.json"; fi
     end 0 "$run: passed, see $artefacts/evaluation-report.html" ;;
  8) end 8 "$run: a gate is missed, see $artefacts/evaluation-report.html" ;;
  *) end "$code" "$run: cannot be evaluated as asked, see $artefacts/eval.json" ;;
esac
