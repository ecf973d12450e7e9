#!/usr/bin/env bash
# All that needs a GPU: the kernels' tests, the figures for docs/benchmarks, the tiles that suit it best.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-docs/benchmarks}
python -m pytest -q tests/ops tests/layers tests/archs
for dtype in float32 bfloat16; do
    python tools/benchmark_nlsa.py --suite layer n --device cuda --dtype "$dtype" --budget 1 \
        --json "$out/gpu_$dtype.json" --plot "$out/gpu_$dtype.png"
done
python tools/benchmark_nlsa.py --network 256 256 --device cuda --compile --budget 5 --json "$out/gpu_network.json"
python tools/benchmark_nlsa.py --tune --dtype bfloat16 --budget 0.2 --json "$out/gpu_tiles.json"
