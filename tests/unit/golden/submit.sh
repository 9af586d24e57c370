#!/bin/bash
# mqi-hpc: submits the chain of one job, or what is left of it, exactly once. Rendered on the workstation.
# usage: bash submit.sh NONCE. Exit codes: 0 the chain stands, 74 a receipt could not be kept,
# 75 sbatch gave no id, 77 the head is not as its receipt says.
set -u
umask 077
nonce=${1:?usage: submit.sh NONCE}
for variable in $(compgen -e); do
  case $variable in
    SLURM_CONF) ;;
    SLURM_*|SBATCH_*|SQUEUE_*|SACCT_*|SCANCEL_*) unset "$variable" ;;
  esac
done
export LC_ALL=C TZ=UTC SLURM_TIME_FORMAT=%s SLURM_BITSTR_LEN=0
cd /scratch/me/mqi/abcdefghijkl/j01 || exit 74
user=$(id -un)
head_name=mqi-i1-abcdefghijkl-j01-interpret

# --foreground: who ends this script ends the client it waits for as well.
say() { printf '\036%s %s\n' "$nonce" "$*"; }
finish() { say "DONE $1"; exit "$1"; }
received() { [ -s "receipt.$1" ] && read -r r_name r_id r_time <"receipt.$1"; }

cancel_own() { timeout --foreground -k 5 60 scancel -u "$user" --name="$1" "$2" 2>&1 | while IFS= read -r line; do say "NOTE scancel: $line"; done; }

# The first writer wins, for ever: the link fails where a receipt already stands.
publish() { # stage name id
  local line tmp
  line="$2 $3 $(date +%s)"
  tmp=$(mktemp "receipt-$1.XXXXXXXX") || { cancel_own "$2" "$3"; finish 74; }
  if ! printf '%s\n' "$line" >"$tmp" || ! sync "$tmp" || [ "$(cat "$tmp")" != "$line" ]; then
    rm -f "$tmp"; cancel_own "$2" "$3"; finish 74
  fi
  if ! ln -T "$tmp" "receipt.$1" 2>/dev/null; then
    # NFS repeats itself: our own words inside mean that we won.
    if ! received "$1" || [ "$r_name $r_id" != "$2 $3" ]; then cancel_own "$2" "$3"; fi
  fi
  rm -f "$tmp"
  sync .
}

# Nothing may lean on the head unless Slurm shows it under its receipt's id and name, pending and held.
head_held() {
  received interpret || return 1
  [ ! -e claim.interpret-0 ] || return 1
  shown=$(timeout --foreground -k 5 60 squeue -h -u "$user" --name="$head_name" -o '%F|%j|%T|%r' 2>/dev/null) || return 1
  # A ghost of a run that froze or died may stand beside it, held for ever.
  case $'\n'$shown in *$'\n'"$r_id|$head_name|PENDING|JobHeld"*) return 0 ;; esac
  return 1
}

# Interpret alone would be work for nothing: whoever cancelled its dependants is obeyed.
dependants_live() {
  local stage shown
  shown=$(timeout --foreground -k 5 60 squeue -h -u "$user" --name=mqi-i1-abcdefghijkl-j01-beams,mqi-i1-abcdefghijkl-j01-convert -o '%F|%j' 2>/dev/null) || return 1
  for stage in beams convert; do
    received "$stage" || return 1
    case $'\n'"$shown"$'\n' in *$'\n'"$r_id|$r_name"$'\n'*) ;; *) return 1 ;; esac
  done
}

submit() { # stage name options...
  local stage=$1 name=$2 out rc id err
  shift 2
  received "$stage" && return 0
  [ "$stage" = interpret ] || head_held || { say "HEAD ${shown:-not seen}"; finish 77; }
  err=$(mktemp) || finish 74
  out=$(timeout --foreground -k 5 180 sbatch "$@" "$stage.sbatch" 2>"$err")
  rc=$?
  id=$(printf '%s\n' "$out" | grep -E '^[0-9]+(;[A-Za-z0-9_.-]+)?$' | tail -n 1)
  id=${id%%;*}
  while IFS= read -r line; do say "SBATCH $stage $line"; done <"$err"
  rm -f "$err"
  if [ "$rc" -ne 0 ] || [ -z "$id" ]; then say "FAILED $stage $rc"; finish 75; fi
  publish "$stage" "$name" "$id"
}

dependency() { # condition stage
  received "$2" || finish 74
  printf '%s:%s' "$1" "$r_id"
}

say BEGIN
submit interpret mqi-i1-abcdefghijkl-j01-interpret \
  --partition=cpu \
  --account=acc \
  --cpus-per-task=1 \
  --mem=4G \
  --time=01:00:00 \
  --parsable \
  --job-name=mqi-i1-abcdefghijkl-j01-interpret \
  '--comment=mqi-hpc, unattended proton beam QA; ask the owner of this account' \
  --no-requeue \
  --export=NONE \
  --chdir=/scratch/me/mqi/abcdefghijkl/j01 \
  --output=/scratch/me/mqi/abcdefghijkl/j01/logs/interpret-%A.log \
  --open-mode=append \
  --nodes=1 \
  --ntasks=1 \
  --hold
needs=$(dependency afterok interpret) || finish 74
submit beams mqi-i1-abcdefghijkl-j01-beams \
  --constraint=a100 \
  --partition=gpu \
  --account=acc \
  --gres=gpu:1 \
  --cpus-per-task=1 \
  --mem=4G \
  --time=02:00:00 \
  --parsable \
  --job-name=mqi-i1-abcdefghijkl-j01-beams \
  '--comment=mqi-hpc, unattended proton beam QA; ask the owner of this account' \
  --no-requeue \
  --export=NONE \
  --chdir=/scratch/me/mqi/abcdefghijkl/j01 \
  --output=/scratch/me/mqi/abcdefghijkl/j01/logs/beams-%A_%a.log \
  --open-mode=append \
  --nodes=1 \
  --ntasks=1 \
  --array=0-2%2 \
  "--dependency=$needs"
needs=$(dependency afterany beams) || finish 74
submit convert mqi-i1-abcdefghijkl-j01-convert \
  --partition=gpu \
  --account=acc \
  --cpus-per-task=1 \
  --mem=4G \
  --time=01:00:00 \
  --parsable \
  --job-name=mqi-i1-abcdefghijkl-j01-convert \
  '--comment=mqi-hpc, unattended proton beam QA; ask the owner of this account' \
  --no-requeue \
  --export=NONE \
  --chdir=/scratch/me/mqi/abcdefghijkl/j01 \
  --output=/scratch/me/mqi/abcdefghijkl/j01/logs/convert-%A.log \
  --open-mode=append \
  --nodes=1 \
  --ntasks=1 \
  "--dependency=$needs"
received interpret || finish 74
say "RECEIPT interpret $r_name $r_id $r_time"
received beams || finish 74
say "RECEIPT beams $r_name $r_id $r_time"
received convert || finish 74
say "RECEIPT convert $r_name $r_id $r_time"
if head_held; then
  dependants_live || { say "HEAD is held, but beams or convert are gone"; finish 77; }
  received interpret
  released=$(timeout --foreground -k 5 60 scontrol release "$r_id" 2>&1) || say "NOTE release: $released"
fi
# Released by us or by another run of this script: what counts is that it is no longer held.
if head_held; then say "HEAD still held"; finish 77; fi
finish 0
