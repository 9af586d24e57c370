# shellcheck shell=sh
# For ./dev: the test cluster's image, container, keys and config.

CLUSTER=$STATE/cluster
CLUSTER_NAME=mqi-hpc-cluster-$(printf '%s' "$ROOT" | sha256sum | cut -c1-8)
CLUSTER_SRC=$ROOT/docker/slurm-cluster

check_suite() {
    case " $SUITES " in *" $1 "*) ;; *) usage_error "suite '$1' is unknown; one of: $SUITES" ;; esac
}

# The name changes with all that goes into the image; the stand-in engine does
# not: it is mounted at start.
image_name() {
    digest=$(cd "$CLUSTER_SRC" && find Dockerfile rootfs -type f | LC_ALL=C sort | while read -r file; do
        if [ -x "$file" ]; then printf 'x '; fi
        sha256sum "$file"
    done | sha256sum | cut -c1-12)
    printf 'mqi-hpc-slurm:%s-%s\n' "$1" "$digest"
}

cluster_image() {
    image=$(image_name "$1")
    need_docker
    if ! "$DOCKER" image inspect "$image" >/dev/null 2>&1; then
        mkdir -p "$STATE"
        need flock:util-linux
        (
            flock 9
            # Another call may have built it while we waited.
            "$DOCKER" image inspect "$image" >/dev/null 2>&1 || build_image "$1" "$image"
        ) 9>"$STATE/build.lock" || return 1
    fi
    printf '%s\n' "$image"
}

build_image() {
    mirror=${MQI_DEBIAN_MIRROR:-http://deb.debian.org/debian}
    base_image "$1"
    say "Building $2 (a minute or two; log: .dev/build-$1.log) …"
    # The build shares the host's network, and so its proxy if there is one.
    proxy=$(apt-config dump --format '%v%n' Acquire::http::Proxy 2>/dev/null || true)
    # Not BuildKit: Debian's docker.io has no buildx.
    DOCKER_BUILDKIT=0 "$DOCKER" build --network host --force-rm \
        --build-arg "BASE=$BASE" --build-arg "SUITE=$1" --build-arg "MIRROR=$mirror" \
        --build-arg "http_proxy=${http_proxy:-$proxy}" \
        -t "$2" "$CLUSTER_SRC" >"$STATE/build-$1.log" 2>&1 </dev/null || {
        tail -n 15 "$STATE/build-$1.log" >&2
        die "the image could not be built (all of it in .dev/build-$1.log)"
    }
}

# Sets BASE to a bare Debian image: from a registry where one answers, else made here.
base_image() {
    BASE=mqi-hpc-base:$1
    if "$DOCKER" image inspect "$BASE" >/dev/null 2>&1; then return; fi
    BASE=debian:$1-slim
    if "$DOCKER" image inspect "$BASE" >/dev/null 2>&1; then return; fi
    if timeout 60 "$DOCKER" pull -q "$BASE" >/dev/null 2>&1 </dev/null; then return; fi
    BASE=mqi-hpc-base:$1
    say "No registry gives debian:$1-slim; making it from the Debian archive with debootstrap."
    need debootstrap:debootstrap
    [ "$(id -u)" = 0 ] || die "debootstrap needs root; run ./dev cluster image once as root"
    script=/usr/share/debootstrap/scripts/$1
    # An older debootstrap does not know the newest suite's name.
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
    tree=$(mktemp -d "$STATE/base.XXXXXX")
    PATH=$PATH:/usr/sbin:/sbin debootstrap --variant=minbase "$1" "$tree/root" "$mirror" "$script" \
        >"$STATE/debootstrap-$1.log" 2>&1 </dev/null || {
        tail -n 5 "$STATE/debootstrap-$1.log" >&2
        rm -rf "$tree"
        die "debootstrap of $1 failed (all of it in .dev/debootstrap-$1.log)"
    }
    tar -C "$tree/root" --exclude=./var/cache/apt --exclude=./var/lib/apt/lists \
        --exclude=./dev --exclude=./proc --exclude=./sys -c . | "$DOCKER" import - "$BASE" >/dev/null
    rm -rf "$tree"
}

cluster_state() {
    # A failed inspect prints an empty line of its own.
    found=$("$DOCKER" inspect -f '{{.State.Status}}' "$CLUSTER_NAME" 2>/dev/null) || found=absent
    printf '%s\n' "$found"
}

in_cluster() { "$DOCKER" exec "$CLUSTER_NAME" "$@"; }

cluster_up() {
    suite=''
    while [ $# -gt 0 ]; do
        case $1 in
            --suite) [ $# -ge 2 ] || usage_error "--suite needs one of: $SUITES"; suite=$2; shift ;;
            --suite=*) suite=${1#*=} ;;
            --yes) export YES=1 ;;
            *) usage_error "cluster up takes no '$1'" ;;
        esac
        shift
    done
    [ -z "$suite" ] || check_suite "$suite"
    need_docker
    need ssh-keygen:openssh-client
    mkdir -p "$CLUSTER/state" "$CLUSTER/cases" "$CLUSTER/results"
    chmod 700 "$STATE" "$CLUSTER" "$CLUSTER/state" "$CLUSTER/cases" "$CLUSTER/results"
    [ -s "$CLUSTER/id_ed25519" ] || ssh-keygen -q -t ed25519 -N '' -C mqi-test-cluster -f "$CLUSTER/id_ed25519"

    case $(cluster_state) in
        absent) ;;
        running | exited | created)
            now=$("$DOCKER" inspect -f '{{.Config.Image}}' "$CLUSTER_NAME")
            case $now in
                *:"${suite:-${now#*:}}"*)
                    [ "$now" = "$(image_name "$(suite_of "$now")")" ] ||
                        say "Note: docker/slurm-cluster has changed since this cluster started; ./dev cluster down, then up, takes it in." ;;
                *) say "Replacing the running $(suite_of "$now") cluster."; "$DOCKER" rm -f "$CLUSTER_NAME" >/dev/null ;;
            esac ;;
        *) "$DOCKER" rm -f "$CLUSTER_NAME" >/dev/null ;;
    esac
    case $(cluster_state) in
        running) ;;
        exited | created) "$DOCKER" start "$CLUSTER_NAME" >/dev/null || die "the stopped cluster does not start again; try ./dev cluster down" ;;
        *)
            image=$(cluster_image "${suite:-bookworm}") || exit 1
            mkdir -p "$CLUSTER_SRC/engine"
            # SYS_ADMIN: slurmd from 24.11 on makes namespaces for --export=NONE.
            "$DOCKER" run -d --name "$CLUSTER_NAME" --hostname login --cap-add SYS_ADMIN \
                --label org.mqi-hpc.kind=slurm-cluster -p 127.0.0.1::22 \
                -e "MQI_AUTHORIZED_KEY=$(cat "$CLUSTER/id_ed25519.pub")" \
                -e "MQI_MIN_JOB_AGE=${MQI_MIN_JOB_AGE:-300}" \
                -v "$CLUSTER_SRC/engine:/opt/mqi-engine:ro" "$image" >/dev/null ||
                die "the cluster's container did not start" ;;
    esac
    in_cluster /opt/cluster/ctl wait-ready 60 >&2 || {
        "$DOCKER" logs --tail 30 "$CLUSTER_NAME" >&2
        die "the cluster is not ready after 60 s; ./dev cluster logs tells more"
    }
    write_config
}

suite_of() { suite_tag=${1#*:}; printf '%s\n' "${suite_tag%%-*}"; }

write_config() {
    address=$("$DOCKER" port "$CLUSTER_NAME" 22/tcp | sed -n 's/^127\.0\.0\.1://p' | head -n 1)
    [ -n "$address" ] || die "the cluster's container publishes no SSH port; try ./dev cluster down, then up"
    # The host key comes through the engine, not through the network it protects.
    host_key=$(in_cluster cat /etc/ssh/ssh_host_ed25519_key.pub)
    printf '[127.0.0.1]:%s %s\n' "$address" "$host_key" >"$CLUSTER/known_hosts"
    chmod 600 "$CLUSTER/known_hosts"
    find_python any
    "$PYTHON" "$ROOT/tests/support/cluster_config.py" "$CLUSTER" "$address"
}

must_run() {
    need_docker
    [ "$(cluster_state)" = running ] || die "the cluster is down; ./dev cluster up starts it"
}

cluster_down() {
    case ${1:-} in '' | --purge) ;; *) usage_error "cluster down takes only --purge" ;; esac
    need_docker
    if [ "$(cluster_state)" = absent ]; then say "The cluster is down already."; else
        "$DOCKER" rm -f -v "$CLUSTER_NAME" >/dev/null
        say "The cluster is down."
    fi
    if [ "${1:-}" = --purge ]; then rm -rf "$CLUSTER"; fi
}

cluster_status() {
    if ! find_docker || [ "$(cluster_state)" != running ]; then
        echo "The cluster is down."
        exit 1
    fi
    echo "Image: $("$DOCKER" inspect -f '{{.Config.Image}}' "$CLUSTER_NAME")"
    echo "SSH:   $("$DOCKER" port "$CLUSTER_NAME" 22/tcp)"
    echo
    in_cluster /opt/cluster/ctl status
    echo
    in_cluster sinfo -o '%.6P %.5a %.6D %.10T %N %G' || true
    echo
    in_cluster squeue -r || true
}

# One argument is a shell line and runs as it stands. Of several, those with
# blanks or shell characters stay whole; globs, ~ and $ are the cluster's.
remote_line() {
    line=''
    for word in "$@"; do
        case $word in
            '|' | '||' | '&&' | ';' | '>' | '>>' | '<') ;;
            '' | *[[:space:]]* | *[\|\&\;\<\>\(\)\'\"\`\\#]*)
                word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'" ;;
        esac
        line="$line${line:+ }$word"
    done
    printf '%s\n' "$line"
}

cluster_ssh() {
    if [ "${1:-}" = -- ]; then shift; fi
    must_run
    need ssh:openssh-client
    [ -s "$CLUSTER/known_hosts" ] || write_config
    port=$("$DOCKER" port "$CLUSTER_NAME" 22/tcp | sed -n 's/^127\.0\.0\.1://p' | head -n 1)
    case $# in
        0) line='' ;;
        1) line=$1 ;;
        *) line=$(remote_line "$@") ;;
    esac
    set -- -F none -p "$port" -i "$CLUSTER/id_ed25519" -o IdentitiesOnly=yes -o BatchMode=yes -o LogLevel=ERROR \
        -o StrictHostKeyChecking=yes -o "UserKnownHostsFile=$CLUSTER/known_hosts" \
        -o GlobalKnownHostsFile=/dev/null mqi@127.0.0.1
    if [ -n "$line" ]; then exec ssh "$@" "$line"; fi
    exec ssh "$@"
}

cluster_fault() {
    [ $# -ge 2 ] || usage_error "cluster fault BEAM exit CODE|nan|half|wrong-size|other-beam|hang|none"
    beam=$1
    case $beam in
        '' | *[!0-9]* | 0*) usage_error "fault: BEAM is a DICOM beam number (1, 2, …), not '$beam'" ;;
    esac
    kind=$2
    shift 2
    case $kind in
        exit)
            [ $# -eq 1 ] || usage_error "fault: 'exit' needs one exit code, 1 to 255"
            case $1 in '' | *[!0-9]* | ????*) usage_error "fault: exit code '$1' is not 1 to 255" ;; esac
            if [ "$1" -lt 1 ] || [ "$1" -gt 255 ]; then usage_error "fault: exit code '$1' is not 1 to 255"; fi
            kind="exit $1" ;;
        nan | half | wrong-size | other-beam | hang | none)
            [ $# -eq 0 ] || usage_error "fault: '$kind' takes nothing more, not '$1'" ;;
        *) usage_error "fault: '$kind' is no fault; one of: exit CODE, nan, half, wrong-size, other-beam, hang, none" ;;
    esac
    must_run
    in_cluster /opt/cluster/fault "$beam" "$kind"
    if [ "$kind" = none ]; then say "Beam $beam computes normally."; else say "Beam $beam will fail: $kind"; fi
}

cluster() {
    verb=${1:-}
    [ $# -eq 0 ] || shift
    case $verb in
        up) cluster_up "$@"; say "The cluster is up: ./dev cluster status"; echo "$CLUSTER/config.yaml" ;;
        down) cluster_down "$@" ;;
        status) cluster_status ;;
        ssh) cluster_ssh "$@" ;;
        config) cluster_up; echo "$CLUSTER/config.yaml" ;;
        logs)
            need_docker
            [ "$(cluster_state)" != absent ] || die "the cluster is down; ./dev cluster up starts it"
            if [ "$(cluster_state)" != running ]; then "$DOCKER" logs "$CLUSTER_NAME"; return; fi
            # shellcheck disable=SC2016  # expanded in the container
            in_cluster sh -c 'cd /var/log/cluster && if [ "$1" = . ]; then tail -n 40 ./*.log; else tail -n 200 "./$1.log"; fi' - "${1:-.}" ;;
        ctl) must_run; in_cluster /opt/cluster/ctl "$@" ;;
        fault) cluster_fault "$@" ;;
        image)
            suite=bookworm
            case ${1:-} in
                '') ;;
                --suite) [ $# -ge 2 ] || usage_error "--suite needs one of: $SUITES"; suite=$2 ;;
                --suite=*) suite=${1#*=} ;;
                *) usage_error "cluster image takes no '$1'" ;;
            esac
            check_suite "$suite"
            cluster_image "$suite" ;;
        '') usage_error "cluster: up, down, status, ssh, config, logs, ctl, fault or image?" ;;
        *) usage_error "cluster: '$verb' is no command" ;;
    esac
}
