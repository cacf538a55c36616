#!/usr/bin/env bash
# Make the shipped rewards from public data: bash rewards/make_shipped.sh ../shared/data WORK [PYTHON]
# About 40 minutes on two cores; WORK keeps what was finished, so it may be started again.
set -euo pipefail
data=$1 work=$2 python=${3:-python}
split=$work/split
mkdir -p "$work"
"$python" -m rewards.shipped_data "$data" --output "$split"

train() {  # column, output, then training files and options
    local column=$1 output=$2; shift 2
    [ -e "$output/config.json" ] || "$python" -m rewards.train_arm "$@" --text-column text --label-column "$column" \
        --output "$output"
}

generate() {  # output, prompts, how many of them, samples, seed, then what steers
    local output=$1 prompts=$2 limit=$3 samples=$4 seed=$5; shift 5
    "$python" -m decoder.generate --prompts "$split/$prompts.jsonl" --limit "$limit" -n "$samples" --seed "$seed" \
        --max-new-tokens 20 --batch-size 64 --output "$work/$output.jsonl" "$@"
}

# positive: the first teacher steers, so that the samples differ in what is to be learned; the second, which reads
# the mean alone and holds better on text that is no film review, labels what came out.
train positive "$work/teacher" "$split/sentiment-reward.jsonl" --test "$split/sentiment-test.jsonl"
train positive "$work/mean-teacher" "$split/sentiment-reward.jsonl" \
    --test "$split/sentiment-test.jsonl" --summary mean --layers 15 --rank 16 --weight-decay 100
for run in "prompts-learn 0" "openings-sentiment 0" "openings-sentiment 1"; do
    read -r prompts seed <<< "$run"
    generate "sentiment-$prompts-$seed-plain" "$prompts" 1300 2 "$seed" --beta 0 --top-k 20
    generate "sentiment-$prompts-$seed-up" "$prompts" 1300 1 "$seed" --reward "$work/teacher:3"
    generate "sentiment-$prompts-$seed-down" "$prompts" 1300 1 "$seed" --reward "$work/teacher:-3"
done
"$python" -m eval.label "$work"/sentiment-*.jsonl --reward "$work/mean-teacher" --temperature 0.5 \
    --label-column positive --output "$work/labelled-sentiment.jsonl"
train positive "$work/positive" "$split/sentiment-reward.jsonl" "$work/labelled-sentiment.jsonl" \
    --test "$split/sentiment-test.jsonl" --layers 15,21 --rank 64 --weight-decay 5 --epochs 8

# nontoxic: one teacher both steers and labels.
train nontoxic "$work/toxicity-teacher" "$split/toxicity-reward.jsonl" \
    --test "$split/toxicity-test.jsonl" --layers 18,24 --rank 64 --weight-decay 10
for prompts in openings-toxicity prompts-learn; do
    generate "toxicity-$prompts-plain" "$prompts" 1500 1 0 --beta 0 --top-k 20
    generate "toxicity-$prompts-up" "$prompts" 1500 1 0 --reward "$work/toxicity-teacher:3"
    generate "toxicity-$prompts-down" "$prompts" 1500 1 0 --reward "$work/toxicity-teacher:-3"
done
"$python" -m eval.label "$work"/toxicity-*.jsonl --reward "$work/toxicity-teacher" \
    --label-column nontoxic --output "$work/labelled-toxicity.jsonl"
train nontoxic "$work/nontoxic" "$split/toxicity-reward.jsonl" "$work/labelled-toxicity.jsonl" \
    --test "$split/toxicity-test.jsonl" --layers 18,24 --rank 64 --weight-decay 5 --epochs 8
