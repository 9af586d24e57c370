#!/bin/bash
# mqi-hpc: submits the chain of one job, or what is left of it, exactly once. Rendered on the workstation.
# usage: bash submit.sh NONCE. A rerun is harmless: what has a receipt is not submitted again. Exit codes:
#  0 the chain stands: a receipt of each stage, and its head is released (by this run, or by another before)
# 74 a receipt could not be kept, or one is there that is damaged or not ours: a person should look
# 75 sbatch gave no id: its exit code and words are told, whether it submitted is for them to say
# 76 Slurm did not answer, or did not release the head: nothing is in doubt, run it again
# 77 the head or what waits for it is not as the receipts say: this job folder is burnt
# 78 the job was called off: nothing more is submitted, and what had a receipt is cancelled
set -u
umask 077
nonce=${1:?usage: submit.sh NONCE}
exec </dev/null
shopt -u failglob nullglob
for variable in $(compgen -e); do
  case $variable in
    SLURM_CONF) ;;
    SLURM_*|SBATCH_*|SQUEUE_*|SACCT_*|SCANCEL_*|SINFO_*|BASH_ENV) unset "$variable" ;;
  esac
done
export LC_ALL=C TZ=UTC SLURM_TIME_FORMAT=%s SLURM_BITSTR_LEN=0
user=$(id -un) || user=$(id -u)
declare -A names=(
  [interpret]=mqi-i1-abcdefghijkl-j01-interpret
  [beams]=mqi-i1-abcdefghijkl-j01-beams
  [convert]=mqi-i1-abcdefghijkl-j01-convert
)

say() { printf '\036%s %s\n' "$nonce" "${*//$'\n'/; }"; }
finish() { say "DONE $1"; exit "$1"; }
# --foreground: who ends this script ends the client it waits for as well.
slurm() { timeout --foreground -k 5 "$@" 2>"$err"; }
words() { head -c 4000 "$err" | tr '\n' ' '; }

received() { # stage: 0 its receipt stands, and is read; 1 there is none
  [ -e "receipt.$1" ] || [ -L "receipt.$1" ] || return 1
  r_name='' r_id='' r_time=''
  [ ! -f "receipt.$1" ] || read -r r_name r_id r_time <"receipt.$1"
  if [ "$r_name" != "${names[$1]}" ] || ! [[ $r_id =~ ^[1-9][0-9]*$ && $r_time =~ ^[0-9]+$ ]]; then
    say "NOTE receipt.$1 is damaged or not of this job: $r_name $r_id $r_time"
    finish 74
  fi
}

# By name and id: the id alone may by now be another case's.
cancel_own() { # stage id
  slurm 60 scancel -u "$user" --name="${names[$1]}" "$2" >&2 || say "NOTE scancel $2: $(words)"
}

# The first writer wins, for ever: the link fails where a receipt already stands.
publish() { # stage id
  local line tmp
  line="${names[$1]} $2 $(date +%s)"
  tmp=$(mktemp "receipt-$1.XXXXXXXX") || { cancel_own "$1" "$2"; finish 74; }
  if ! printf '%s\n' "$line" >"$tmp" || ! sync "$tmp" || [ "$(cat "$tmp")" != "$line" ]; then
    rm -f "$tmp"; cancel_own "$1" "$2"; finish 74
  fi
  if ! ln -T "$tmp" "receipt.$1"; then
    # NFS repeats itself, and a controller may hand an id out again: our own name and id inside mean that
    # this job is the winner, whoever wrote it down.
    r_name='' r_id=''
    [ ! -f "receipt.$1" ] || read -r r_name r_id r_time <"receipt.$1"
    [ "$r_name $r_id" = "${names[$1]} $2" ] || cancel_own "$1" "$2"
  fi
  rm -f "$tmp"
  sync .
}

# Sets `head`: held, as Slurm shows it under its receipt's id and name; else gone. Ends where Slurm is silent.
look_at_head() {
  local shown own others claimed=no
  received interpret || finish 74
  # Before the look: another run may release it, and it may begin, while we look.
  ! compgen -G 'claim.interpret-*' >/dev/null || claimed=yes
  shown=$(slurm 60 squeue -h -u "$user" --name="${names[interpret]}" -o '%F|%j|%T|%r') || {
    say "NOTE squeue: $(words)"; finish 76
  }
  # A ghost of a run that froze or died may stand beside it, held for ever. A task of an array that was released
  # may be held again by somebody else: the head is held where no row of it says otherwise.
  own=$'\n'"$r_id|$r_name|"
  others=$'\n'$shown
  others=${others//"${own}PENDING|JobHeld"/}
  head=gone
  if [ "$others" != $'\n'"$shown" ] && [[ $others != *"$own"* ]]; then head=held; fi
  seen=${shown:-not seen}
  # A controller that came back from an older state shows a head as held that has run.
  if [ "$head" = held ] && [ "$claimed" = yes ]; then
    say "HEAD is held again, although it has begun its work: $seen"
    finish 77
  fi
}

# Their unfinished jobs, as `id|name` in lines of their own: sets `shown`. Ends where Slurm is silent.
look_for() { # name,name,...
  shown=$(slurm 60 squeue -h -u "$user" --name="$1" -o '%F|%j') || { say "NOTE squeue: $(words)"; finish 76; }
  shown=$'\n'$shown$'\n'
}

# The head alone would be work for nothing: whoever cancelled its dependants is obeyed.
dependants_live() {
  local stage shown
  look_for "${names[beams]},${names[convert]}"
  for stage in beams convert; do
    received "$stage" || finish 74
    case $shown in *$'\n'"$r_id|$r_name"$'\n'*) ;; *) return 1 ;; esac
  done
}

# Who calls a job off leaves the mark before looking for what is to be cancelled: a run that has frozen
# since ends here, and what it had submitted already is turned away by the fence.
obey() {
  [ -e withdrawn ] || return 0
  if received convert; then cancel_own convert "$r_id"; fi
  if received beams; then cancel_own beams "$r_id"; fi
  if received interpret; then cancel_own interpret "$r_id"; fi
  say "NOTE the job was called off"
  finish 78
}

place() { # stage options...: one sbatch, and its receipt
  local stage=$1 out rc id line
  shift
  depend "$stage"
  if [ "$stage" != interpret ]; then
    look_at_head
    if [ "$head" != held ]; then
      # Another run of this script may have come to its end meanwhile.
      received "$stage" && return
      say "HEAD $seen"
      finish 77
    fi
  fi
  obey
  out=$(slurm 180 sbatch "$@" ${dependency:+"--dependency=$dependency"} "$stage.sbatch")
  rc=$?
  id=$(printf '%s\n' "$out" | grep -E '^[1-9][0-9]*(;[A-Za-z0-9_.-]+)?$' | tail -n 1)
  id=${id%%;*}
  while IFS= read -r line || [ -n "$line" ]; do say "SBATCH $stage $line"; done < <(head -c 16000 "$err")
  if [ "$rc" -ne 0 ] && [ -n "$id" ]; then
    say "SBATCH $stage error: it gave the id $id and failed: it may have been accepted"
  fi
  if [ "$rc" -ne 0 ] || [ -z "$id" ]; then say "FAILED $stage $rc"; finish 75; fi
  publish "$stage" "$id"
}

# What stands is said at once: where the rest fails, it may have to be taken back.
submit() { # stage options...
  received "$1" || place "$@"
  received "$1" || finish 74
  say "RECEIPT $1 $r_name $r_id $r_time"
}

needs() { # condition stage: adds to `dependency` the id in the receipt, and no other
  received "$2" || finish 74
  dependency=$1:$r_id
}

older() { # job name: 0 the receipt of an older job's array stands, and is read; 1 there is none, or an empty one
  local file=../$1/receipt.beams said
  if ! said=$(stat -c %s -- "$file" 2>&1); then
    case $said in *'No such file or directory') return 1 ;; esac
    say "NOTE $said"
    finish 76
  fi
  # The loader may have warned before the answer (LD_PRELOAD).
  [ "${said##*$'\n'}" != 0 ] || return
  r_name='' r_id='' r_time=''
  [ ! -f "$file" ] || read -r r_name r_id r_time <"$file"
  if [ "$r_name" != "$2" ] || ! [[ $r_id =~ ^[1-9][0-9]*$ && $r_time =~ ^[0-9]+$ ]]; then
    say "NOTE receipt.beams of $1 is damaged or not its own: $r_name $r_id $r_time"
    finish 74
  fi
}

# Adds to `dependency` the arrays of older jobs that have not ended. One without a receipt can never work; of
# one that Slurm does not show as unfinished there is nothing left to wait for, and its id may be another's.
waits() { # job name...
  local shown row rows=() all=''
  while [ $# -gt 0 ]; do
    if older "$1" "$2"; then rows+=("$r_id|$2") all+=,$2; fi
    shift 2
  done
  [ -n "$all" ] || return
  look_for "${all#,}"
  for row in "${rows[@]}"; do
    case $shown in *$'\n'"$row"$'\n'*) dependency=${dependency:-afterany}:${row%%|*} ;; esac
  done
}

depend() { # stage: sets `dependency`, empty where it waits for nothing
  dependency=''
  case $1 in
    beams)
      needs afterok interpret
      ;;
    convert)
      needs afterany beams
      ;;
  esac
}

cd /scratch/me/mqi/abcdefghijkl/j01 || { say "NOTE the job folder cannot be entered"; finish 74; }
# Here, not in TMPDIR: where no file can be made, nothing is to be submitted.
err=$(mktemp stderr.XXXXXXXX) || finish 74
trap 'rm -f "$err"' EXIT
submit interpret \
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
submit beams \
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
  --array=0-2%2
submit convert \
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
  --ntasks=1
look_at_head
# Not held any more: another run of this script released it.
[ "$head" = held ] || finish 0
if ! dependants_live; then
  look_at_head
  [ "$head" = held ] || finish 0
  say "HEAD is held, but beams or convert are gone"
  finish 77
fi
obey
received interpret || finish 74
slurm 60 scontrol release "$r_id" >&2 || say "NOTE release: $(words)"
# What scontrol says counts for nothing: the queue tells.
look_at_head
[ "$head" = gone ] || { say "NOTE the head is held still: $seen"; finish 76; }
finish 0
