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
# Environment: VERB (extract), ARTEFACTS (artefacts), RUNS (runs), FORMATS (of the export: all; or such as "onnx pt2"),
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

transferctl check "$spec" --json > "$artefacts/check.json"
run=$(transferctl "${VERB:-extract}" "$spec" --runs-dir "$runs" | tail -n 1)

split=val
if grep -q '^ "test": {' "$run/summary.json"; then split=test; fi

# Whatever the gates say, everything is kept; then the job ends as they say.
code=0
transferctl eval "$run" --split "$split" ${gates[@]+"${gates[@]}"} --runs-dir "$runs" --json > "$artefacts/eval.json" || code=$?
transferctl export "$run" ${formats[@]+"${formats[@]}"} --out "$artefacts/model" --json > "$artefacts/export.json" || exported=$?
code=$((code ? code : ${exported:-0}))
for file in report.html summary.json metrics.jsonl environment.json spec.yaml classes.json predictions.csv log.txt; do
  if [ -e "$run/$file" ]; then cp "$run/$file" "$artefacts/"; fi
done

words=$([ "$code" = 0 ] && echo passed || echo "failed with exit code $code")
echo "$run: the gates $words; see $artefacts/report.html"
if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then echo "\`$run\`: the gates **$words**" >> "$GITHUB_STEP_SUMMARY"; fi
exit "$code"
