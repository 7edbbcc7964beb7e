#!/bin/bash
# Removes what test processes left behind that were killed before they could: containers that restart for ever, their
# networks and volumes, registries, images, folders. What belongs to a living process is left alone: its id is in
# every name.
set -euo pipefail

alive() { [ -d "/proc/$1" ]; }

# Reads names like [deploy-tests-]WORD-PID-N-RANDOM[...], prints those whose process is gone.
orphans() {
    local name pid
    while read -r name; do
        pid=$(sed -nE 's/^.*(clinic|registry|image|base|fixture|agent|demo|notify|unit|engine)-([0-9]+)-[0-9]+-[0-9a-f]{6}.*$/\2/p' <<<"$name")
        [ -z "$pid" ] || alive "$pid" || echo "$name"
    done
}

# An agent before its project's containers: it would bring them back.
for dir in $(find "${TMPDIR:-/tmp}" -maxdepth 1 -name 'deploy-tests-agent-*' | orphans); do
    if [ -e "$dir/pid" ] && grep -qzF "$dir/config" "/proc/$(cat "$dir/pid")/cmdline" 2>/dev/null; then
        kill -KILL "$(cat "$dir/pid")"
        echo "sweep: ended the agent of $dir"
    fi
done

# An Engine of a test's own: its namespaces end with their first process, whose arguments name the folder.
for dir in $(find "${TMPDIR:-/tmp}" -maxdepth 1 -name 'deploy-tests-engine-*' | orphans); do
    if [ -e "$dir/pid" ] && grep -qzF "$dir" "/proc/$(cat "$dir/pid")/cmdline" 2>/dev/null; then
        kill -KILL "$(cat "$dir/pid")"
        echo "sweep: ended the Engine of $dir"
    fi
    find /sys/fs/cgroup -depth -type d -path "*/${dir##*/}*" -exec rmdir {} + 2>/dev/null || true
done

project='{{.Label "com.docker.compose.project"}}'
for name in $({ docker ps --all --format "$project"; docker volume ls --format "$project"
    docker network ls --format "$project"; } | grep '^clinic-' | sort -u | orphans); do
    label="label=com.docker.compose.project=$name"
    docker ps --all --quiet --filter "$label" | xargs -r docker rm --force --volumes >/dev/null
    docker network ls --quiet --filter "$label" | xargs -r docker network rm >/dev/null
    docker volume ls --quiet --filter "$label" | xargs -r docker volume rm --force >/dev/null
    echo "sweep: removed project $name"
done
docker ps --all --format '{{.Names}}' | grep '^fixture-' | orphans | xargs -r docker rm --force --volumes || true

for dir in $(find "${TMPDIR:-/tmp}" -maxdepth 1 -name 'deploy-tests-*' | orphans); do
    config="$dir/config.yml"
    if [ -e "$dir/pid" ] && grep -qzF "$config" "/proc/$(cat "$dir/pid")/cmdline" 2>/dev/null; then
        kill "$(cat "$dir/pid")"
    fi
    if [ -e "$config" ]; then
        port=$(sed -nE "s/.*addr: '127.0.0.1:([0-9]+)'.*/\1/p" "$config")
        docker images --format '{{.Repository}} {{.ID}}' |
            awk -v a="127.0.0.1:$port/" -v b="localhost:$port/" 'index($1, a) == 1 || index($1, b) == 1 { print $2 }' |
            sort -u | xargs -r docker rmi --force >/dev/null
    fi
    findmnt --noheadings --list --output TARGET | { grep -F "$dir/" || true; } | xargs -r umount --lazy
    # A test may have made files of an Engine's immutable.
    chattr -R -f -i "$dir" || true
    rm -rf "$dir"
    echo "sweep: removed $dir"
done
