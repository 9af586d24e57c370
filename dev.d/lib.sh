# shellcheck shell=sh
# For ./dev: messages, Debian packages, and a Docker engine that answers.
# Everything but results goes to stderr, so that stdout can be read by programs.

say() { printf '%s\n' "$*" >&2; }
die() { printf 'dev: %s\n' "$*" >&2; exit 1; }
usage_error() { printf 'dev: %s (./dev help lists the commands)\n' "$*" >&2; exit 2; }

# await SECONDS COMMAND…: poll until it succeeds.
await() {
    end=$(($(date +%s) + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$(date +%s)" -lt "$end" ] || return 1
        sleep 0.1
    done
}

is_debian() { command -v apt-get >/dev/null 2>&1; }

# consent QUESTION: yes where nobody can be asked, else ask.
consent() {
    if [ -n "$YES" ] || [ "${CI:-}" = true ] || [ ! -t 0 ]; then return; fi
    printf '%s [y/N] ' "$1" >&2
    read -r answer || answer=n
    case $answer in [yY] | [yY][eE][sS]) ;; *) return 1 ;; esac
}

apt_install() {
    is_debian || die "please install by your system's own means: $*"
    [ "$(id -u)" = 0 ] || die "missing Debian packages; run as root: apt-get install $*"
    say "These Debian packages will be installed: $*"
    consent "Install them now?" || die "not installed: $*"
    mkdir -p "$STATE"
    apt_log=$STATE/apt.log
    # A stale index is no reason to stop: the install itself will tell.
    apt-get update >"$apt_log" 2>&1 </dev/null || true
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >>"$apt_log" 2>&1 </dev/null || {
        tail -n 15 "$apt_log" >&2
        die "apt-get could not install: $* (all of it in $apt_log)"
    }
}

need() {
    missing=''
    for pair in "$@"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
    done
    # shellcheck disable=SC2086  # a list of package names
    [ -z "$missing" ] || apt_install $missing
}

# Sets DOCKER to a client that the engine answers. A client much newer than the
# engine may refuse to speak to it, so Debian's own is tried too.
find_docker() {
    for DOCKER in docker /usr/bin/docker; do
        if command -v "$DOCKER" >/dev/null 2>&1 &&
            "$DOCKER" version --format '{{.Server.APIVersion}}' >/dev/null 2>&1; then return; fi
    done
    DOCKER=''
    return 1
}

need_docker() {
    if [ -n "${DOCKER:-}" ] || find_docker; then return; fi
    [ -z "${DOCKER_HOST:-}" ] || die "the Docker engine at DOCKER_HOST=$DOCKER_HOST does not answer; start it, or unset DOCKER_HOST"
    if docker version 2>&1 | grep -qi 'permission denied'; then
        die "the Docker engine refuses this user; join the group 'docker', or run as root"
    fi
    say "No Docker engine answers here; the test cluster runs in one."
    if ! PATH=$PATH:/usr/sbin command -v dockerd >/dev/null 2>&1; then
        is_debian || die "install Docker (docs.docker.com/engine/install), start it, and call again"
        # From trixie on the client is a package of its own.
        client=''
        if apt-cache show docker-cli >/dev/null 2>&1; then client=docker-cli; fi
        # shellcheck disable=SC2086  # empty or one name
        apt_install docker.io $client iptables ca-certificates
    fi
    [ "$(id -u)" = 0 ] || die "dockerd is installed but not running; start it as root: systemctl start docker"
    start_dockerd
}

start_dockerd() {
    if find_docker; then return; fi
    if [ -d /run/systemd/system ]; then
        systemctl start docker || true
        if await 30 find_docker; then find_docker; return; fi
    fi
    mkdir -p "$STATE"
    # From what a full machine allows down to what any kernel can do: without
    # iptables docker-proxy still publishes on loopback; vfs needs no overlay.
    for flags in '' '--iptables=false --ip6tables=false' '--iptables=false --ip6tables=false --storage-driver=vfs'; do
        say "Starting dockerd $flags …"
        rm -f /var/run/docker.pid
        # shellcheck disable=SC2086  # a list of flags
        PATH=$PATH:/usr/sbin:/sbin setsid dockerd $flags >"$STATE/dockerd.log" 2>&1 </dev/null 9>&- &
        dockerd_pid=$!
        await 60 docker_settled
        if find_docker; then return; fi
        kill "$dockerd_pid" 2>/dev/null || true
        await 10 not_running "$dockerd_pid" || true
    done
    tail -n 5 "$STATE/dockerd.log" >&2
    die "dockerd does not start here (all of it in $STATE/dockerd.log); start a Docker engine yourself and call again"
}

not_running() { ! kill -0 "$1" 2>/dev/null; }
docker_settled() { find_docker || not_running "$dockerd_pid"; }
