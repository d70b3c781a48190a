#!/usr/bin/env bash
# Runs each self-test in a Slicer of its own, as ctest would; SLICER names the program. All of them, then the verdict.
set -uo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
failed=()

run() { # run LABEL TEST [Slicer's options]
  local label=$1 test=$2
  shift 2
  echo "::group::$label"
  timeout 1200 xvfb-run -a -s "-screen 0 1600x1200x24" "$SLICER" --no-splash --testing --disable-cli-modules "$@" \
    --additional-module-paths "$root/GenSegSlicer" \
    --python-code "import slicer.testing; slicer.testing.runUnitTest(['$root/Testing/slicer', '$root/GenSegSlicer'], '$test')"
  local status=$?
  echo "::endgroup::"
  echo "$label: exit status $status"
  [ "$status" = 0 ] || failed+=("$label")
}

for script in "$root"/Testing/slicer/*TestCase.py; do
  run "$(basename "$script" .py)" "$(basename "$script" .py)"
done
run "GenSegSlicer" GenSegSlicer
run "GenSegSlicer without a main window" GenSegSlicer --no-main-window
run "GenSegSlicerModuleTestCase without a main window" GenSegSlicerModuleTestCase --no-main-window

if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
