#!/usr/bin/env bash
# Make the shipped rewards from public data: bash rewards/make_shipped.sh ../shared/data WORK [PYTHON]
# Some four hours on two cores, as estimated from its parts; WORK keeps what was finished, so it may be started again.
#
# Two teachers of different kinds are made: a tap ARM that learned from what became of the generator's own texts
# (its rollouts), and a RAD, which reads text by itself. `positive` learns the mean of their values of the generator's
# own candidates, `nontoxic` the RAD's alone, mostly on texts that the generator wrote, plain and steered both ways.
set -euo pipefail
data=$1 work=$2 python=${3:-python}
split=$work/split
mkdir -p "$work"
[ -e "$split/openings-toxicity.jsonl" ] || "$python" -m rewards.shipped_data "$data" --output "$split"

train() {  # module, column, output, then training files and options
    local module=$1 column=$2 output=$3; shift 3
    [ -e "$output/config.json" ] || "$python" -m "rewards.$module" "$@" --text-column text \
        --label-column "$column" --output "$output"
}

generate() {  # output, prompts, how many of them, samples, seed, then what steers; a finished file is left as it is
    local output=$1 prompts=$2 limit=$3 samples=$4 seed=$5; shift 5
    "$python" -m decoder.generate --prompts "$split/$prompts.jsonl" --limit "$limit" -n "$samples" --seed "$seed" \
        --max-new-tokens 20 --batch-size 64 --output "$work/$output.jsonl" "$@"
}

label() {  # output, column, reward, then files and options
    local output=$1 column=$2 reward=$3; shift 3
    [ -e "$work/$output.jsonl" ] || "$python" -m eval.label "$@" --reward "$reward" --label-column "$column" \
        --output "$work/$output.jsonl"
}

distil() {  # column, name of the data, layers, who labels the generator's own texts, output, then teachers
    local column=$1 name=$2 layers=$3 labeller=$4 output=$5; shift 5
    label "own-$name" "$column" "$labeller" "$work/own-$name"-*.jsonl
    train train_arm "$column" "$output" "$work/own-$name.jsonl" "$split/$name-reward.jsonl" \
        --test "$split/$name-test.jsonl" --max-length 64 "$@" \
        --distil candidates --candidate-positions 3 --limit 12000 \
        --layers "$layers" --rank 64 --weight-decay 15 --epochs 8
}

# positive. Of the two heads on labelled sentences the first steers, so that the samples differ in what is to be
# learned; the second, which reads the mean alone and holds better on text that is no film review, labels them.
sentiment=("$split/sentiment-reward.jsonl" --test "$split/sentiment-test.jsonl")
train train_arm positive "$work/teacher" "${sentiment[@]}"
train train_arm positive "$work/mean-teacher" "${sentiment[@]}" --summary mean --layers 15 --rank 16 --weight-decay 100
for run in "prompts-learn 0" "openings-sentiment 0" "openings-sentiment 1"; do
    read -r prompts seed <<< "$run"
    generate "sentiment-$prompts-$seed-plain" "$prompts" 1300 2 "$seed" --beta 0 --top-k 20
    generate "sentiment-$prompts-$seed-up" "$prompts" 1300 1 "$seed" --reward "$work/teacher:3"
    generate "sentiment-$prompts-$seed-down" "$prompts" 1300 1 "$seed" --reward "$work/teacher:-3"
done
label labelled-sentiment positive "$work/mean-teacher" "$work"/sentiment-*.jsonl --temperature 0.5
train train_arm positive "$work/positive-rollouts" "$split/sentiment-reward.jsonl" "$work/labelled-sentiment.jsonl" \
    --test "$split/sentiment-test.jsonl" --layers 15,21 --rank 64 --weight-decay 5 --epochs 8
train train_rad positive "$work/sentiment-rad" "${sentiment[@]}" --max-length 64 --mixed-precision bf16
generate own-sentiment-open-plain openings-sentiment 4349 1 0 --beta 0 --top-k 20
generate own-sentiment-web-plain prompts-learn 2531 1 0 --beta 0 --top-k 20
for steered in "up 12 1" "down -12 2"; do
    read -r way beta seed <<< "$steered"
    generate "own-sentiment-open-$way" openings-sentiment 1500 1 "$seed" --reward "$work/positive-rollouts@probability:$beta"
    generate "own-sentiment-web-$way" prompts-learn 2531 1 "$seed" --reward "$work/positive-rollouts@probability:$beta"
done
distil positive sentiment 15,21 "$work/positive-rollouts" "$work/positive" \
    --teacher "$work/sentiment-rad" --teacher "$work/positive-rollouts"

# nontoxic: one head on labelled comments both steers and labels.
toxicity=("$split/toxicity-reward.jsonl" --test "$split/toxicity-test.jsonl")
train train_arm nontoxic "$work/toxicity-teacher" "${toxicity[@]}" --layers 18,24 --rank 64 --weight-decay 10
for prompts in openings-toxicity prompts-learn; do
    generate "toxicity-$prompts-plain" "$prompts" 1500 1 0 --beta 0 --top-k 20
    generate "toxicity-$prompts-up" "$prompts" 1500 1 0 --reward "$work/toxicity-teacher:3"
    generate "toxicity-$prompts-down" "$prompts" 1500 1 0 --reward "$work/toxicity-teacher:-3"
done
label labelled-toxicity nontoxic "$work/toxicity-teacher" "$work"/toxicity-*.jsonl
train train_arm nontoxic "$work/nontoxic-rollouts" "$split/toxicity-reward.jsonl" "$work/labelled-toxicity.jsonl" \
    --test "$split/toxicity-test.jsonl" --layers 18,24 --rank 64 --weight-decay 5 --epochs 8
train train_rad nontoxic "$work/toxicity-rad" "${toxicity[@]}" --max-length 64 --mixed-precision bf16 --epochs 1
generate own-toxicity-open-plain openings-toxicity 3500 1 0 --beta 0 --top-k 20
generate own-toxicity-open-up openings-toxicity 1500 1 1 --reward "$work/nontoxic-rollouts@probability:12"
generate own-toxicity-open-down openings-toxicity 2000 1 2 --reward "$work/nontoxic-rollouts@probability:-12"
generate own-toxicity-web-plain prompts-learn 1500 1 0 --beta 0 --top-k 20
distil nontoxic toxicity 18,24 "$work/nontoxic-rollouts" "$work/nontoxic" --teacher "$work/toxicity-rad"
