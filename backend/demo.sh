#!/usr/bin/env bash
# What `make demo` does once the environment stands: sample data, training, prediction, Dice table, report.
# Reads GENSEG (the program), DEMO (folder for everything), DATA (a study of yours, may be empty),
# LABELLED, UNLABELLED (may be empty) and BUDGET from the environment.
set -euo pipefail
begin=$SECONDS
study="$DATA"
options=(--budget "$BUDGET")
# Of a study of one's own all labelled scans are used, unless LABELLED says otherwise.
if [ -z "$study" ] || [ -n "$LABELLED" ]; then options+=(--labelled "${LABELLED:-3}"); fi

if [ -z "$study" ]; then
    study="$DEMO/hippocampus"
    if [ ! -f "$study/dataset.json" ] && [ -f "$DEMO/phantom/dataset.json" ]; then
        study="$DEMO/phantom"
        echo "Using the phantom of the last demo (drawn, not scanned). Remove $study to try the download again."
    elif [ ! -f "$study/dataset.json" ]; then
        rm -rf "$study"
        if ! "$GENSEG" sample hippocampus --out "$study"; then
            rm -rf "$study"
            study="$DEMO/phantom"
            echo "The sample scans could not be downloaded, so this demo uses a phantom: drawn, not scanned."
            rm -rf "$study"
            "$GENSEG" sample phantom --out "$study"
        fi
    fi
    # The phantom has 12 scans in all beside the test scans; of the hippocampi 20 are enough to look at.
    if [ "$study" = "$DEMO/phantom" ]; then unlabelled=$((12 - ${LABELLED:-3})); else unlabelled=20; fi
    unlabelled="${UNLABELLED:-$unlabelled}"
else
    unlabelled="$UNLABELLED"
fi
if [ -n "$unlabelled" ]; then options+=(--unlabelled "$unlabelled"); fi

run="$DEMO/run"
number=1
while [ -e "$run" ]; do
    number=$((number + 1))
    run="$DEMO/run-$number"
done

"$GENSEG" train "$study" --out "$run" "${options[@]}"

printf '\nHow the model does on test scans it was never trained on, against their reference labels:\n'
status=0
"$GENSEG" evaluate "$run" "$study" || status=$?
if [ "$status" = 2 ] && [ -n "$DATA" ]; then
    echo "Without labelled test scans in the study there is no Dice table; the predictions stand all the same."
elif [ "$status" != 0 ]; then
    exit "$status"
fi

run="$(cd "$run" && pwd)"
printf '\nReport:      %s\nPredictions: %s\n' "$run/report.html" "$run/predictions"
printf 'Time:        %d min %d s\n' $(((SECONDS - begin) / 60)) $(((SECONDS - begin) % 60))
