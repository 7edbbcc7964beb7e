#!/bin/bash
# Makes a bare Debian 12 machine ready for the tests, the demo and the benchmark: installs what is missing, starts
# the Docker Engine when it does not run. Idempotent, quick when there is nothing to do, safe to run several at once.
set -euo pipefail
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" LC_ALL=C

ENGINE_LOG=/var/log/deploy-tests-dockerd.log
ENGINE_WAIT_SECONDS=60
COMPOSE_PLUGIN=/usr/local/lib/docker/cli-plugins/docker-compose

# command -> Debian package that brings it
NEEDED="dockerd:docker.io docker:docker.io docker-registry:docker-registry iptables:iptables busybox:busybox-static
        sshd:openssh-server ssh:openssh-client jq:jq curl:curl systemd-analyze:systemd gcc:gcc
        strace:strace faketime:faketime"

say() { echo "setup: $*"; }
die() { echo "setup: error: $*" >&2; exit 1; }

missing_packages() {
    local entry
    for entry in $NEEDED; do
        command -v "${entry%%:*}" >/dev/null || echo "${entry#*:}"
    done | sort -u
}

engine_version() { timeout 20 docker version --format '{{.Server.Version}}' 2>/dev/null; }

# v1 is a program of its own and never answers here.
compose_version() { timeout 20 docker compose version --short 2>/dev/null | grep -E '^v?[2-9]'; }

report() {
    local registry="registry binary ok"
    command -v docker-registry >/dev/null || registry="no docker-registry: the tests that need one will fail"
    set -- "${1%%[+~]*}" "${2#v}"
    say "Docker Engine $1, Compose ${2%%-*}, $registry"
}

# A machine that we may not change is taken as it is.
only_look() {
    local engine compose
    engine=$(engine_version) || engine=
    compose=$(compose_version) || compose=
    if [ -n "$engine" ] && [ -n "$compose" ]; then
        report "$engine" "$compose"
        exit 0
    fi
    [ -n "$engine" ] || echo "setup: no Docker Engine answers: install and start one (20.10 or newer)" >&2
    [ -n "$compose" ] || echo "setup: 'docker compose' is not v2: install the Compose v2 plugin" >&2
    die "$1; install the above and docker-registry, openssh-server, jq, curl, gcc, busybox,
strace and faketime, then run this again"
}

install_packages() {
    say "installing $*"
    # The programs are wanted, not their services: nothing is started or enabled by the installation.
    local policy=
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=/usr/sbin/policy-rc.d
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
        chmod 755 "$policy"
    fi
    local log; log=$(mktemp)
    local apt=(apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 --no-install-recommends install)
    export DEBIAN_FRONTEND=noninteractive
    # The lists on a fresh machine are absent or old: refresh them only when they turn out to be.
    if ! "${apt[@]}" "$@" >"$log" 2>&1; then
        apt-get -qq update >"$log" 2>&1 || true
        "${apt[@]}" "$@" >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "apt-get could not install $*"; }
    fi
    rm -f "$log"
    [ -z "$policy" ] || rm -f "$policy"
    trap - EXIT
    if [ -d /run/systemd/system ]; then
        case " $* " in *" openssh-server "*) systemctl -q disable ssh.service ;; esac
        case " $* " in *" docker-registry "*) systemctl -q disable docker-registry.service ;; esac
    fi
}

# Debian 12 has only the dead v1. Debian 13's plugin is a static binary: taken out of its package, with lists of our
# own, so that the suite is never mixed into the system's.
install_compose() {
    say "installing the Compose v2 plugin"
    local dir; dir=$(mktemp -d)
    mkdir -p "$dir/sources" "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/x"
    local own=/etc/apt/sources.list.d/debian.sources
    if [ -e "$own" ]; then
        awk 'BEGIN { RS = "" } NR == 1' "$own" | sed 's/^Suites:.*/Suites: trixie/' > "$dir/sources/trixie.sources"
    else
        # The older form: the machine's own first mirror, another suite.
        sed -nE 's/^deb +(\[[^]]*\] +)?([^ ]+) +[^ ]+ .*/deb \1\2 trixie main/p' /etc/apt/sources.list |
            head -n 1 > "$dir/sources/trixie.list"
        [ -s "$dir/sources/trixie.list" ] || die "there is no Debian mirror in /etc/apt to take the plugin from"
    fi
    local apt=(apt-get -qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$dir/sources"
        -o Dir::State::Lists="$dir/lists" -o Dir::Cache="$dir/cache" -o APT::Sandbox::User=root)
    if ! { "${apt[@]}" update && cd "$dir/x" && "${apt[@]}" download docker-compose; } >"$dir/log" 2>&1; then
        tail -n 20 "$dir/log" >&2
        die "the package docker-compose of Debian 13 could not be fetched"
    fi
    dpkg -x "$dir"/x/docker-compose_*.deb "$dir/x"
    cd /
    mkdir -p "${COMPOSE_PLUGIN%/*}"
    install -m 755 "$dir/x/usr/libexec/docker/cli-plugins/docker-compose" "$COMPOSE_PLUGIN.new"
    mv "$COMPOSE_PLUGIN.new" "$COMPOSE_PLUGIN"
    rm -rf "$dir"
}

# A killed Engine leaves its pid files, and after a reboot their numbers may be anyone's: dockerd then refuses to start.
remove_stale_pid_file() { # FILE PROGRAM
    [ -e "$1" ] || return 0
    local pid; pid=$(cat "$1")
    # exe, not comm: a zombie still has its name.
    case "$(readlink "/proc/$pid/exe")" in */"$2"*) ;; *) rm -f "$1" ;; esac
}

start_engine() {
    [ -z "${DOCKER_HOST:-}" ] || die "DOCKER_HOST is $DOCKER_HOST, where no Engine answers; unset it or start that one"
    remove_stale_pid_file /var/run/docker.pid dockerd
    remove_stale_pid_file /var/run/docker/containerd/containerd.pid containerd
    if [ -d /run/systemd/system ]; then
        systemctl start docker || die "systemctl start docker failed; see journalctl -u docker"
    elif [ ! -e /var/run/docker.pid ]; then
        say "starting dockerd, log in $ENGINE_LOG"
        setsid dockerd </dev/null >"$ENGINE_LOG" 2>&1 9>&- &
    fi
    local deadline=$((SECONDS + ENGINE_WAIT_SECONDS))
    until engine_version >/dev/null; do
        if [ $SECONDS -ge $deadline ]; then
            [ ! -e "$ENGINE_LOG" ] || tail -n 20 "$ENGINE_LOG" >&2
            die "dockerd does not answer after $ENGINE_WAIT_SECONDS s"
        fi
        sleep 0.2
    done
}

[ "$(id -u)" = 0 ] || only_look "not root, so nothing was installed or started"
[ -e /etc/debian_version ] || only_look "not a Debian machine, so nothing was installed or started"

exec 9>/run/deploy-tests-setup.lock
flock 9

packages=$(missing_packages)
# shellcheck disable=SC2086 # a list of words
[ -z "$packages" ] || install_packages $packages
compose=$(compose_version) || { install_compose; compose=$(compose_version) || die "Compose v2 was installed but does not answer"; }
engine=$(engine_version) || { start_engine; engine=$(engine_version) || die "dockerd stopped answering"; }
report "$engine" "$compose"
