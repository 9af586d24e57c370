"""The two scripts of an upload, as they run on the cluster after script.PRELUDE."""

LOOK = r"""
# What is there: whose the workspace is, how much space it has, and the state of each folder we would send.
workspace=$1 key=$2 instance=$3
shift 3
own() { # the first who links .owner owns the workspace, for ever
  local tmp
  tmp=$(mktemp .owner.XXXXXXXX) || return 1
  if ! { printf '%s\n' "$instance" >"$tmp" && sync "$tmp" && [ "$(cat "$tmp")" = "$instance" ]; } ||
    ! { ln -T "$tmp" .owner || [ -e .owner ]; }; then
    rm -f "$tmp"
    return 1
  fi
  rm -f "$tmp"
  sync .
}
state() { # folder, digest of its manifest, closed or open: whether more files may be in it
  local have out
  if [ -L "$1" ]; then say STATE "$1" link; return; fi
  if [ ! -e "$1" ]; then say STATE "$1" absent; return; fi
  if [ ! -e "$1/MANIFEST.sha256" ]; then
    if [ -n "$(ls -A "$1")" ]; then say STATE "$1" incomplete; else say STATE "$1" empty; fi
    return
  fi
  have=$(sha256sum <"$1/MANIFEST.sha256") || fail read "$1/MANIFEST.sha256"
  if [ "${have%% *}" != "$2" ]; then say STATE "$1" other; return; fi
  if ! out=$(cd "$1" && sha256sum -c --strict --quiet MANIFEST.sha256 2>&1); then
    say STATE "$1" damaged "$(printf '%s' "$out" | text)"
    return
  fi
  if [ "$3" = closed ]; then
    out=$(cd "$1" && find . ! -type d ! -path ./MANIFEST.sha256 -printf '%y %P\n' | sort)
    if [ "$out" != "$(sed 's/^[0-9a-f]*  /f /' "$1/MANIFEST.sha256" | sort)" ]; then
      say STATE "$1" extra "$(printf '%s' "$out" | text)"
      return
    fi
  fi
  say STATE "$1" same
}
over() { # device: what `quota` says of it, where a limit is reached that nothing can be written beyond
  command -v quota >/dev/null || return 0
  timeout -k 2 5 quota -q 2>/dev/null | device=$1 awk '
    BEGIN { end = " on " ENVIRON["device"] }
    !/^[ \t]*In / && substr($0, length($0) - length(end) + 1) == end'
}
step 'making the workspace' mkdir -p -- "$workspace"
enter 'the workspace' "$workspace"
[ -e .owner ] || step 'claiming the workspace' own
owner=$(head -c 200 .owner)
say OWNER "$(printf '%s' "$owner" | text)"
if [ "$owner" = "$instance" ]; then
  read -r device free <<<"$(df -Pk -- . | awk 'END { print $1, $4 }')"
  say SPACE "$free" "$(over "$device" | text)"
  if [ -L "$key" ]; then fail "entering the case's folder" "$key is a symbolic link, Not a directory"; fi
  step "making the case's folder" mkdir -p -- "$key"
  enter "the case's folder" "$key"
  while [ $# -gt 0 ]; do state "$1" "$2" "$3"; shift 3; done
  for other in j[0-9]*; do if [ -d "$other" ]; then say JOB "$other"; fi; done
fi
say END
"""

SEND = r"""
# A tar archive on stdin becomes folders beside their places; verified, each is renamed into its place.
workspace=$1 key=$2 token=$3
shift 3
verify() { # folder, digest of its manifest
  cd -- "$1" || return 1
  printf '%s  MANIFEST.sha256\n' "$2" | sha256sum -c --strict --quiet || return 1
  sha256sum -c --strict --quiet MANIFEST.sha256
}
publish() { # folder, digest of its manifest
  if [ -d "$1" ] && [ ! -e "$1/MANIFEST.sha256" ] && [ "$1" = input ]; then
    mv -T -- "$1" "./trash-$token-0" || return 1
  fi
  # Where another attempt was faster, its folder stands; it counts if it is the same.
  mv -T -- "$1.part-$token" "$1" || ( verify "$1" "$2" ) || return 1
  sync .
}
clear_away() { # all that earlier attempts left
  local part n=0
  for part in ./*.part-*; do
    [ -e "$part" ] || continue
    # One of them may still be at work, its link lost: renamed first, it cannot be published half removed.
    n=$((n + 1))
    mv -T -- "$part" "./trash-$token-$n" || [ ! -e "$part" ] || return 1
  done
  rm -rf -- ./trash-*
}
enter "the case's folder" "$workspace/$key"
trap 'rm -rf -- ./*.part-"$token" ./trash-"$token"-*' EXIT
step 'clearing earlier attempts' clear_away
step 'unpacking' tar -x -m --no-same-owner --no-same-permissions -f -
verify_part() { ( verify "$1.part-$token" "$2" ); }
flush() { find "$1.part-$token" -exec sync -- {} +; }
while [ $# -gt 0 ]; do
  step 'verifying what arrived' verify_part "$1" "$2"
  step 'writing to disk' flush "$1"
  step 'publishing' publish "$1" "$2"
  say DONE "$1"
  shift 2
done
say END
"""
