#!/bin/sh
# From a standard library to the model in the package: sh reproduce.sh LIBRARY WORK
# LIBRARY is the library of CPython 3.13.0, as .../lib/python3.13; WORK is a folder for what lies in between.
set -eu
library=$1 work=$2
cd "$(dirname "$0")"
python data.py --stdlib "$library" --target "$work/data"
python train.py --data "$work/data" --out "$work/weights" --minutes 5
python checkpoint.py --weights "$work/weights" --data "$work/data" --stdlib "$library" --target "$work/checkpoint"
mkdir -p results
cp "$work/weights/run.json" "$work/weights/curve.csv" "$work/data/corpus.json" results
cp "$work/data/heldout.json" results/held_out_files.json
python baselines.py --data "$work/data" --stdlib "$library" --out results/baselines.json
python measure_formats.py --checkpoint "$work/checkpoint" --data "$work/data" --out results/formats.json
python plot.py --results results
python ship.py --checkpoint "$work/checkpoint"
