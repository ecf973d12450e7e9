#!/usr/bin/env bash
# All that needs a GPU: the figures of docs/performance.md but for the streamed form's, the tiles that suit it best, the kernels' tests.
#
#     tools/gpu_report.sh [FOLDER [STEP...]]
#
# FOLDER: for the figures, results/gpu unless it is given. STEP: float32, bfloat16, network, tiles, tests; all in
# this order, unless some are given. A step has its time, and its figures are written as it ends; one that fails leaves
# the others their turn, and is named at the end. DRY_RUN=1 prints the commands.
set -uo pipefail
out=$(realpath -m "${1:-$(dirname "$0")/../results/gpu}")
steps=("${@:2}")
[[ ${#steps[@]} -gt 0 ]] || steps=(float32 bfloat16 network tiles tests)
cd "$(dirname "$0")/.." || exit 1
mkdir -p "$out"

benchmark() {
    local seconds=$1 name=$2
    shift 2
    within "$seconds" python tools/benchmark_nlsa.py "$@" --json "$out/gpu_$name.json"
}

within() {
    local seconds=$1
    shift
    if [[ -n ${DRY_RUN:-} ]]; then
        echo timeout "$seconds" "$@"
    else
        timeout "$seconds" "$@"
    fi
}

run_step() {
    case $1 in
        float32)
            benchmark 240 float32 --suite layer small --form reference fused --device cuda --budget 0.15 ;;
        bfloat16)
            benchmark 240 bfloat16 --suite layer n --form reference fused nla nla-sdpa --device cuda --dtype bfloat16 \
                --budget 0.15 --plot "$out/gpu_bfloat16.png" ;;
        network) benchmark 240 network --network 256 256 --device cuda --compile --budget 1 ;;
        tiles) benchmark 240 tiles --tune --dtype bfloat16 --budget 0.1 ;;
        tests)
            within 300 python -m pytest -q --dist load --maxprocesses 16 tests/ops/test_fused.py tests/ops/test_lsh.py \
                tests/ops/test_dispatch.py tests/layers/test_nlsa.py \
                tests/archs/test_nlsn_arch.py::test_equals_the_released_network_with_its_state_dict_loaded_strictly ;;
        *) echo "no step $1: float32, bfloat16, network, tiles, tests" >&2; return 1 ;;
    esac
}

failed=()
for step in "${steps[@]}"; do
    echo "== $step"
    started=$SECONDS
    run_step "$step" || failed+=("$step")
    echo "== $step took $((SECONDS - started)) s"
done
if [[ ${#failed[@]} -gt 0 ]]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
