#!/usr/bin/env bash
# The real server on a small random checkpoint, spoken to by curl and by SDKs for Node: OpenAI's,
# Anthropic's, Vercel's and LangChain's. Ends with "N passed, M failed, K skipped".
#   GAZE_BUILD=build/release tests/sdk/run.sh
set -u
cd "$(dirname "$0")/../.."
build=${GAZE_BUILD:-build/release}
gaze=${GAZE_BIN:-$build/gaze}
model=tests/fixtures/v32-bf16
ember=config/models/ember
tmp=$(mktemp -d)
passed=0 failed=0 skipped=0
server=
trap '[ -n "$server" ] && kill "$server" 2>/dev/null; wait 2>/dev/null; rm -rf "$tmp"' EXIT

check() { # what, condition's exit code
    if [ "$2" -eq 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAIL $1"
    fi
}
skip() {
    skipped=$((skipped + 1))
    echo "skip: $1"
}
finish() {
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ]
    exit
}

start() { # options of gaze serve; sets server and url
    "$gaze" serve --port 0 "$@" >"$tmp/log" 2>&1 &
    server=$!
    for _ in $(seq 300); do
        grep -q '^curl' "$tmp/log" && break
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    url=$(sed -n 's/.* on \(http:[^ ]*[0-9]\)\. Try:$/\1/p' "$tmp/log")
    [ -n "$url" ] && return
    cat "$tmp/log"
    check "the server starts" 1
    server=
    finish
}
stop() {
    kill -TERM "$server"
    wait "$server"
    check "SIGTERM ends with code 0" $?
    server=
}
sdk() { # file: its tests against the server
    timeout 120 node "tests/sdk/$1" "$url/v1" >"$tmp/sdk" 2>&1
    cat "$tmp/sdk"
    passed=$((passed + $(grep -c '^ok ' "$tmp/sdk")))
    failed=$((failed + $(grep -c '^FAIL' "$tmp/sdk")))
    grep -q '^end$' "$tmp/sdk"
    check "the tests of $1 come to their end" $?
}

start --model $model --served-name tiny --alias gpt-4o

# --- curl ---------------------------------------------------------------------------------------
post() { # path, body, further curl options
    local path=$1 body=$2
    shift 2
    curl -sS -m 60 -H 'Content-Type: application/json' "$@" "$url$path" -d "$body"
}
hello='"messages":[{"role":"user","content":"Hi"}]'
bash -c "$(grep '^curl' "$tmp/log") -sS -m 60" 2>/dev/null | grep -q '"chat.completion"'
check "the printed curl line works" $?
post /v1/chat/completions "{$hello,\"max_tokens\":4}" | grep -q '"finish_reason":"\(length\|stop\)"'
check "chat" $?
post /v1/chat/completions "{$hello,\"max_tokens\":4,\"stream\":true}" -N >"$tmp/out"
tail -n 2 "$tmp/out" | grep -q '^data: \[DONE\]$'
check "chat, streamed" $?
text() { # further fields of a completion
    post /v1/completions "{\"prompt\":\"Hi\",\"max_tokens\":8,$1}" |
        sed 's/.*"text":\(.*\),"logprobs".*/\1/'
}
a=$(text '"temperature":0')
[ -n "$a" ] && [ "$a" = "$(text '"temperature":0')" ]
check "greedy repeats itself" $?
[ "$(text '"temperature":1,"seed":7')" = "$(text '"temperature":1,"seed":7')" ]
check "a seed repeats itself" $?
[ "$(post /v1/completions '{"prompt":"Hi","temperature":9}' -o /dev/null -w '%{http_code}')" = 400 ]
check "a wrong temperature is 400" $?
[ "$(curl -sS -m 20 -o /dev/null -w '%{http_code}' "$url/v1/chat/completions" -d '{}')" = 415 ]
check "a form is 415" $?
head -c 40000 /dev/zero | tr '\0' 'a' | sed 's/^/{"prompt":"/; s/$/","max_tokens":1}/' >"$tmp/long"
[ "$(post /v1/completions "@$tmp/long" -o "$tmp/out" -w '%{http_code}')" = 400 ] &&
    grep -q context_length_exceeded "$tmp/out"
check "a prompt beyond the context is 400" $?
status=$(post /v1/completions "@$tmp/long" -H 'Expect: 100-continue' -o /dev/null -w '%{http_code}')
[ "$status" = 400 ]
check "Expect: 100-continue" $?
post /v1/completions '{"prompt":"Hello there","echo":true,"max_tokens":0,"logprobs":1}' |
    grep -q '"text":"Hello there","logprobs":{"tokens":'
check "a prompt's log-probabilities" $?
curl -sS -m 20 "$url/health" | grep -q '"ok"'
check "health" $?
curl -sS -m 20 "$url/metrics" >"$tmp/out"
grep -q '^vllm:generation_tokens_total{model_name="tiny"} [1-9]' "$tmp/out"
check "metrics count tokens" $?
curl -sS -m 20 "$url/version" | grep -q '"commit"'
check "version" $?

# --- the command line ---------------------------------------------------------------------------
"$gaze" plan --model $model --json | grep -q '"total_bytes":[1-9]'
check "gaze plan --json" $?
"$gaze" info --model $model | grep -q 'indexer'
check "gaze info" $?
printf '"Hi"\n"Gr\\u00fc\\u00df"\n' | "$gaze" tokenize --model $model --jsonl >"$tmp/out"
[ "$(grep -c '^\[[0-9,]*\]$' "$tmp/out")" = 2 ]
check "gaze tokenize --jsonl" $?
"$gaze" --help | grep -q -- '--max-context'
check "gaze --help" $?
"$gaze" bench --model $model --contexts 1024 --streams 1,2 --repeats 1 >"$tmp/out"
grep -q '^decode' "$tmp/out"
check "gaze bench" $?
"$gaze" serve --modle x 2>&1 | grep -q 'did you mean --model'
check "an unknown flag" $?
"$gaze" serve --model /nowhere --port 0 >"$tmp/out" 2>&1
[ $? -eq 3 ] && [ "$(grep -c '^gaze: ' "$tmp/out")" = 1 ]
check "a model that is not there: exit code 3 and one sentence" $?

# --- the SDK ------------------------------------------------------------------------------------
if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    skip "node and npm are not installed"
elif [ tests/sdk/package.json -nt tests/sdk/node_modules/.package-lock.json ] &&
    ! (cd tests/sdk && timeout 240 npm install --silent --no-package-lock >/dev/null 2>&1); then
    skip "no registry answers, so the SDKs cannot be installed"
else
    sdk openai.mjs
    sdk openapi.mjs
    seed=${SEED:-$RANDOM}
    node tests/sdk/schemas.mjs "$seed" 300 >"$tmp/schemas" &&
        RANDOM_SCHEMAS=$tmp/schemas "$build/tests/unit/test_schema" schema_random_ones >"$tmp/out"
    check "random schemas: the verdicts are ajv's (SEED=$seed)" $?
    if [ -f $ember/model.safetensors ]; then
        stop
        start --model $ember --served-name ember
        for sdk in tools structured events responses anthropic vercel langchain; do
            sdk $sdk.mjs
        done
        if command -v chromium >/dev/null; then
            sdk page.mjs
        else
            skip "chromium is not installed, so nothing looks at the page"
        fi
    else
        skip "the bundled model is not there, so nothing calls a tool"
    fi
fi
stop
finish
