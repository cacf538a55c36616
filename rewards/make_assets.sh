#!/usr/bin/env bash
# Make stores of embedded samples with golden rewards: bash rewards/make_assets.sh ../shared/data WORK [PYTHON]
#
# WORK keeps what was finished, so it may be started again. WORK/web holds samples after
# half-sentences from the web, with two judges' golden rewards, sentiment and nontoxic; WORK/dialogue samples after the
# openings of dialogues, with nontoxic and harmless, the last from a head that learned from people's preferences.
# In each 1,000 prompts have 10 samples, to train on, and 200 others 64, to test on.
set -euo pipefail
data=$1 work=$2 python=${3:-python}
mkdir -p "$work"
# Both stores are made at once, each by half of the cores: measured faster than one after the other by all of them.
half=$(($(nproc) / 2)); export OMP_NUM_THREADS=$((half > 0 ? half : 1))
[ -e "$work/split/openings-toxicity.jsonl" ] || "$python" -m rewards.shipped_data "$data" --output "$work/split"

# Harmlessness as people judge it: Bradley-Terry on another encoder than the generator, so that no head on the
# generator's states can simply copy it.
preferences=$data/preferences/hh_harmless_base_test.jsonl.gz
[ -e "$work/people/prompts.jsonl" ] || "$python" -m rewards.preference_data "$preferences" --output "$work/people"
if [ ! -e "$work/harmless/config.json" ]; then
    "$python" -m rewards.embed "$work/people/responses.jsonl" --model all-minilm-l6-v2 --layer 4 --layer 5 --layer 6 \
        --max-length 256 --output "$work/people/store"
    "$python" -m rewards.train_head "$work/people/store" --pairs-file "$work/people/pairs.jsonl" --head bt-linear \
        --output "$work/harmless"
fi

sample() {  # store, part of it, samples of each prompt
    "$python" -m decoder.generate --prompts "$work/$1-$2-prompts.jsonl" -n "$3" --beta 0 --top-k 50 --max-new-tokens 24 \
        --dtype bfloat16 --batch-size 256 --output "$work/$1-$2.jsonl" --embed "$work/$1-unlabelled"
}

judge() {  # store, part of it, then a golden reward and its name, and so on: each run adds one
    local store=$1 part=$2 from=$work/$1-$2.jsonl to; shift 2
    while [ $# -gt 0 ]; do
        to=$work/$store-$part-$2.jsonl
        [ -e "$to" ] || "$python" -m eval.gold "$from" --gold "$1" --field "$2" --output "$to"
        from=$to; shift 2
    done
}

assets() {  # store, the name of the last golden reward, label columns; then golden rewards as for judge
    local store=$1 last=$2 columns=$3; shift 3
    head -n 1000 "$work/$store-prompts.jsonl" > "$work/$store-train-prompts.jsonl"
    tail -n 200 "$work/$store-prompts.jsonl" > "$work/$store-test-prompts.jsonl"
    sample "$store" train 10
    sample "$store" test 64
    judge "$store" train "$@"
    judge "$store" test "$@"
    # shellcheck disable=SC2086
    [ -e "$work/$store/manifest.json" ] || "$python" -m rewards.relabel "$work/$store-unlabelled" \
        "$work/$store-train-$last.jsonl" "$work/$store-test-$last.jsonl" $columns --output "$work/$store"
}

head -n 1000 "$work/split/prompts-learn.jsonl" > "$work/web-prompts.jsonl"
head -n 200 "$work/split/prompts-report.jsonl" >> "$work/web-prompts.jsonl"
assets web nontoxic "--label-column sentiment --label-column nontoxic" sentiment sentiment toxicity nontoxic &
web=$!

# The shorter openings: a base of 135 M parameters loses the thread of longer ones.
awk 'length($0) < 500 && n++ < 1200' "$work/people/prompts.jsonl" > "$work/dialogue-prompts.jsonl"
assets dialogue harmless "--label-column nontoxic --label-column harmless" \
    toxicity nontoxic "$work/harmless" harmless
wait "$web"
