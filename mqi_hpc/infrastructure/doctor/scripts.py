"""The scripts of a doctor, as they run on the cluster after script.PRELUDE, and the job it submits."""

_WHO = r"""
export TZ=UTC
user=$(id -un) || user=$(id -u)
"""

# Each command has a limit of its own, and is told at once: what hangs costs only what comes after it.
_ASK = r"""
limit=$1
input=''
errors=$(mktemp) || errors=/dev/null
trap '[ "$errors" = /dev/null ] || rm -f -- "$errors"' EXIT
ask() { # name, command...: its exit code, output and errors
  local name=$1 out rc
  shift
  out=$(printf '%s' "$input" | timeout -k 5 "$limit" "$@" 2>"$errors" | head -c 1000000 | base64 | tr -d '\n'
    exit "${PIPESTATUS[1]}")
  rc=$?
  say "$name" "$rc" "$out" "$(head -c 4000 "$errors" | base64 | tr -d '\n')"
  return "$rc"
}
"""

LOOK = (
    _WHO
    + _ASK
    + r"""
workspace=$2 instance=$3 sinfo_format=$4
ask DATE date +%s
ask USER id -un
ask TOOLS bash -c 'for tool in awk base64 cat cut date df find grep head id ln ls mkdir mktemp mv rm sed \
  sha256sum sort stat sync tail tar timeout tr; do command -v "$tool" >/dev/null || echo "$tool"; done'
ask COMMANDS bash -c 'for tool in sbatch squeue sacct scontrol scancel; do
  echo "$tool=$(command -v "$tool")"; done'
ask VERSION sbatch -V
if ask CONFIG scontrol show config; then
  ask PARTITIONS sinfo -h -a -o "$sinfo_format"
  ask ACCOUNTING sacct -n -P -X -j 1 -o JobID
  ask ASSOCIATION sacctmgr -n -P show assoc where user="$user" format=Cluster,Account,Partition,QOS
  input=$'#!/bin/bash\nexit 0\n'
  tests
  input=''
fi
probe=$(cat <<'PROBE'
workspace=$1 instance=$2 folder=''
trap '[ -z "$folder" ] || rm -rf -- "$folder"' EXIT
trap 'exit 1' HUP INT TERM PIPE
tell() { printf '%s=%s\n' "$1" "$(printf '%s' "$2" | tr '\n=' '  ')"; }
place=$workspace
kind=directory
if [ ! -e "$place" ] && [ ! -L "$place" ]; then
  kind=absent
  while [ ! -e "$place" ]; do place=$(dirname -- "$place"); done
elif [ ! -d "$place" ]; then
  kind=$(stat -c %F -- "$place")
fi
tell kind "$kind"
tell me "$(id -un)"
tell user "$(stat -L -c %U -- "$place")"
tell mode "$(stat -L -c %a -- "$place")"
tell fs "$(stat -f -L -c %T -- "$place")"
tell free_kib "$(df -Pk -- "$place" | awk 'END { print $4 }')"
tell free_inodes "$(df -Pi -- "$place" 2>/dev/null | awk 'END { print $4 }')"
tell quota "$(command -v quota >/dev/null && timeout -k 2 5 quota -q 2>/dev/null | head -c 1000)"
mine=yes
if [ "$kind" = directory ]; then
  tell entries "$(ls -A -- "$place" | grep -v '^\.mqi-doctor\.' | head -n 3 | wc -l)"
  if [ -e "$place/.owner" ]; then
    # The loader may have warned before (LD_PRELOAD).
    owner=$(head -c 200 -- "$place/.owner" 2>&1)
    owner=${owner##*$'\n'}
    tell has_owner yes
    tell owner "$owner"
    [ "$owner" = "$instance" ] || mine=no
  fi
fi
# In a workspace of somebody else nothing is written, not even for a moment.
if [ "$mine" = no ]; then tell write untried; exit 0; fi
if ! said=$(mktemp -d -- "$place/.mqi-doctor.XXXXXXXX" 2>&1); then tell write "$said"; exit 0; fi
folder=${said##*$'\n'}
cd -- "$folder" || exit 0
tell write ok
check() { # name, command...
  local name=$1 said
  shift
  if said=$("$@" 2>&1); then tell "$name" ok; else tell "$name" "${said:-fails}"; fi
}
links() { # the second writer of a name must fail, and the first one's stay
  echo one >one && echo two >two && ln -T one name || return 1
  if ln -T two name 2>/dev/null; then echo 'a second link takes the place of the first'; return 1; fi
  [ "$(cat name)" = one ] && [ "$(stat -c %h one)" = 2 ]
}
renames() { mkdir -- from && echo x >from/file && mv -T -- from to && [ -e to/file ] && [ ! -e from ]; }
syncs() { echo x >synced && sync synced && sync .; }
cases() {
  echo x >lower || return 1
  [ ! -e LOWER ] || { echo 'names that differ only in case are one'; return 1; }
}
check link links
check rename renames
check sync syncs
check case cases
PROBE
)
ask WORKSPACE bash -c "$probe" mqi-hpc "$workspace" "$instance"
say END
"""
)

# `tests` is defined before it: one `sbatch --test-only` a stage, which submits nothing.
TRIAL = (
    _WHO
    + _ASK
    + r"""
tests
say END
"""
)

# A job of ours that has not ended is cancelled when this script ends, however it ends.
NODES = (
    _WHO
    + r"""
workspace=$1 token=$2 patience=$3
place=$workspace
while [ ! -e "$place" ]; do place=$(dirname -- "$place"); done
folder=$(heard mktemp -d -- "$place/.mqi-doctor.XXXXXXXX") || fail 'making a folder for a probe' "$folder"
names=() ids=() states=() details=()
away() {
  local i
  trap '' HUP INT TERM PIPE
  for i in "${!names[@]}"; do
    case ${states[i]} in
      answered|over) continue ;;
    esac
    # A refusal may have been a lost answer; the name is this probe's alone.
    timeout -k 5 20 scancel -u "$user" --name="${names[i]}" ${ids[i]:+"${ids[i]}"} >/dev/null 2>&1
  done
  rm -rf -- "$folder"
}
trap away EXIT
cd -- "$folder" || exit 9
printf '%s\n' "$token" >token
launch() { # name, text of the script, options...
  local name=$1 text=$2 said rc i=${#names[@]}
  shift 2
  names[i]=$name states[i]=unknown ids[i]='' details[i]=''
  said=$(printf '#!/bin/bash\nmqi_folder=%q mqi_index=%d\n%s' "$folder" "$i" "$text" |
    timeout -k 5 "$limit" sbatch --parsable "$@" --job-name="$name" --chdir="$folder" \
      --output="$folder/$i.log" 2>&1)
  rc=$?
  ids[i]=$(printf '%s\n' "$said" | grep -E '^[0-9]+(;.*)?$' | tail -n 1 | cut -d ';' -f 1)
  if [ "$rc" -eq 0 ] && [ -n "${ids[i]}" ]; then
    states[i]=pending
  elif [ "$rc" -ne 124 ] && [ "$rc" -ne 137 ]; then
    states[i]=refused details[i]=$said
  fi
}
seen() { # whether the answer of job $1 is there; a listing makes NFS look again
  ls -- "$folder" >/dev/null
  [ -e "$folder/$1.answer" ] && states[$1]=answered
}
look() { # one squeue for all
  local rows i row state reason
  rows=$(timeout -k 5 20 squeue -h -u "$user" -o '%j|%A|%T|%r' 2>/dev/null) || return 0
  for i in "${!names[@]}"; do
    case ${states[i]} in pending|running|ending) ;; *) continue ;; esac
    row=$(printf '%s\n' "$rows" | grep -F -- "${names[i]}|${ids[i]}|" | head -n 1)
    IFS='|' read -r _ _ state reason <<<"$row"
    case $state in
      '') if [ "${states[i]}" = ending ]; then seen "$i" || states[i]=over; else states[i]=ending; fi ;;
      PENDING) details[i]=$reason ;;
      COMPLETING) ;;
      *) states[i]=running details[i]=$state ;;
    esac
  done
}
limit=30
jobs
end=$((SECONDS + patience)) turn=0
while [ "$SECONDS" -lt "$end" ]; do
  open=0
  for i in "${!names[@]}"; do
    case ${states[i]} in
      pending|running|ending) seen "$i" || open=1 ;;
    esac
  done
  [ "$open" -eq 1 ] || break
  # So many words that a broken link is felt, and few questions to slurmctld.
  say WAITS
  [ $((turn++ % 4)) -ne 3 ] || look
  sleep 1
done
for i in "${!names[@]}"; do
  [ "${states[i]}" != ending ] || seen "$i" || states[i]=over
  answer=''
  [ "${states[i]}" != answered ] || answer=$(text <"$folder/$i.answer")
  [ "${states[i]}" != over ] || details[i]=$(tail -c 1000 -- "$folder/$i.log" 2>/dev/null)
  say JOB "$i" "${states[i]}" "$(printf '%s' "${details[i]}" | text)" "$answer"
done
say END
"""
)

# What a job asks of the node it runs on, after a line that sets folder and index; @...@ are filled in.
NODE_JOB = r"""umask 077
export SLURM_EXPORT_ENV=ALL
export PATH="${PATH:-/usr/local/bin:/usr/bin:/bin}"
@PROLOGUE@
cd -- "$mqi_folder" || exit 74
python=@PYTHON@ engine=@ENGINE@
{
  echo "node=${SLURMD_NODENAME:-$(hostname)}"
  echo "token=$(cat token 2>/dev/null)"
  "$python" -B -c '
import platform
print("python=" + platform.python_version())
for name in ("numpy", "pydicom"):
    try:
        print(name + "=" + __import__(name).__version__)
    except Exception as error:
        print(name + "=!" + (str(error) or type(error).__name__).splitlines()[0].replace("=", " "))
' 2>"$mqi_index.errors" || echo "python_error=exit code $? $(head -c 300 "$mqi_index.errors" | tr '\n=' '  ')"
  [ -z "$engine" ] || echo "engine=$(command -v -- "$engine")"
  echo "gpu=${CUDA_VISIBLE_DEVICES-}"
  if [ @GPU@ = yes ] && command -v nvidia-smi >/dev/null; then
    echo "gpu_name=$(timeout -k 2 10 nvidia-smi -L 2>/dev/null | head -n 1 | tr '=' ' ')"
  fi
} >"$mqi_index.part"
mv -T -- "$mqi_index.part" "$mqi_index.answer"
"""
