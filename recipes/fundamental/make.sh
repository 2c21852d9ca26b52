#!/bin/sh
# Make the base from nothing: sh make.sh SPEECH BOOKS WORK [STEPS [DECAY]]. README.md says what the folders hold.
# Given again it goes on where it was cut off. All that takes long is done by two processes.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
speech=$(cd "$1" && pwd)
books=$(cd "$2" && pwd)
mkdir -p "$3"
work=$(cd "$3" && pwd)
steps=${4:-30000}
decay=${5:-4800}
half=$((steps / 2))

# One thread for each process; kernels are kept for all shapes, freed memory is used again at once.
export OMP_NUM_THREADS=1 ONEDNN_PRIMITIVE_CACHE_CAPACITY=30000 LRU_CACHE_CAPACITY=30000
export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=268435456

run() { # PROGRAM ARGUMENT …
    program=$1
    shift
    python "$here/$program.py" "$@"
}

# shellcheck disable=SC2046 # one argument for each list of words
[ -e "$work/texts.tsv" ] || run texts --speech "$speech" --books "$books" --output "$work/texts.tsv" --count 60000 \
    --words $(dpkg --listfiles scowl | grep -E '/(english|american)-words\.(10|20|35)$')
run check_texts --speech "$speech" "$work/texts.tsv"

run synthesize --texts "$work/texts.tsv" --output "$work/synth" --hours 14.6 --part 1/2 &
run synthesize --texts "$work/texts.tsv" --output "$work/synth" --hours 14.6 --part 2/2
wait

run prepare --speech "$speech" --synthetic "$work/synth" --texts "$work/texts.tsv" --output "$work/manifests" \
    --tokenizer "$work/tokenizer"
run check_texts --speech "$speech" "$work/manifests/train_synth.jsonl"

run teacher "$work/manifests/train_real.jsonl" "$work/manifests/train_wordless.jsonl" &
run teacher "$work/synth"
wait

train() { # OPTION …
    python -m torch.distributed.run --standalone --nproc-per-node 2 "$here/distil.py" "$work" "$@"
}

go_on() { # NAME STEPS OPTION …: train up to so many steps, and keep the weights as NAME
    name=$1
    upto=$2
    shift 2
    if [ ! -e "$work/$name" ]; then
        train --steps "$upto" "$@"
        rm -rf "$work/$name.partial"
        cp -r "$work/distil/mean" "$work/$name.partial"
        mv "$work/$name.partial" "$work/$name"
    fi
}

# The rate falls to zero halfway and at the end; from halfway on it hears harder speech.
go_on first "$half" --decay "$decay"
go_on middle "$((steps - decay))" --decay 1 --data "$here/training/harder.yaml"
go_on last "$steps" --decay "$decay" --data "$here/training/harder.yaml"
rm -rf "$work/embedded"
run embed "$work/embedded" "$work/last=0.45" "$work/middle=0.25" "$work/first=0.3"
