#!/bin/sh
# Train the base from nothing: sh train.sh WORK [KEY=VALUE …]. WORK holds the manifests and the tokenizer of prepare.py.
# Given again it goes on where it was cut off; further settings go to the main stage.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
work=$(cd "$1" && pwd)
shift
data="$work/manifests"
real="$data/train_real.jsonl"

# One thread for each process; kernels are kept for all shapes, freed memory is used again at once.
export OMP_NUM_THREADS=1 ONEDNN_PRIMITIVE_CACHE_CAPACITY=30000 LRU_CACHE_CAPACITY=30000
export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=268435456

stage() { # NAME KEY=VALUE …: skipped where it is complete
    name=$1
    shift
    [ -e "$work/$name/checkpoints/$name.nemo" ] && return
    overtone train --config-path "$here/training" --config-name "$name" \
        "model.validation_ds.manifest_filepath=$data/valid.jsonl" "exp_manager.explicit_log_dir=$work/$name" "$@"
}

stage start "model.init=$here/training/model.yaml" "model.tokenizer=$work/tokenizer/tokenizer.model" \
    "model.train_ds.manifest_filepath=$data/train_easy.jsonl"
stage fundamental "model.nemo_model=$work/start/checkpoints/start.nemo" \
    "model.train_ds.manifest_filepath=[$real,$real,$real,$data/train_synth.jsonl]" "$@"
