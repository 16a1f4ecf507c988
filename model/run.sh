#!/usr/bin/env bash
# Checks channel.pml with Spin: complete, no counterexample; with any field of the binder taken
# out, one. Prints a line for each and fails if any comes out otherwise than README.md says.
#
#   model/run.sh          all of it
#   model/run.sh matrix   which purposes need which field, on their own
#   model/run.sh -D…      one variant, with the steps of its counterexample
set -euo pipefail
cd "$(dirname "$0")"
for tool in spin gcc; do
  command -v "$tool" >/dev/null || { echo "skipped: no $tool on this machine (apt-get install spin gcc)"; exit 0; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# check DIR MACROS…: builds and runs one variant there; leaves its words in DIR/found.
check() {
  local dir=$1
  shift
  mkdir -p "$dir"
  cp channel.pml "$dir/"
  (
    cd "$dir"
    spin "$@" -a channel.pml >spin.log 2>&1
    # Two runs are searched faster than an optimiser runs.
    case "$*" in *-DNR=2*) level=-O0 table=18 ;; *) level=-O1 table=23 ;; esac
    gcc $level -DSAFETY -DNOREDUCE -DMEMLIM=2000 -w -o pan pan.c
    ./pan -n -E -m10000 -w$table >pan.log 2>&1
    if grep -q 'errors: 0$' pan.log && ! grep -q 'max search depth too small\|out of memory\|memory limit' pan.log; then
      echo "none in $(awk '/states, stored/ {print $1}' pan.log) states" >found
    elif [ -f channel.pml.trail ]; then
      spin "$@" -t channel.pml 2>/dev/null | grep -o 'ACCEPT.*' | tail -1 | words >found
    else
      { echo "broken:"; tail -3 spin.log pan.log; } >found
    fi
  )
}

# words turns the last acceptance of a counterexample into a sentence.
words() {
  awk '
    function hello(h) { return h == 0 ? "nothing" : h < 64 ? "HELLO of " who[h % 8] " nonce " int(h / 8) : h < 128 ? "nonce " h - 64 : "keys " who[int((h - 128) / 8)] who[h % 8] }
    BEGIN { split("A B E N M", names, " "); who[0] = "a client"; for (i in names) who[i] = names[i]; split("client server", roles, " ") }
    {
      printf "%s takes %s for %s", who[$7], $22 == 1 ? "its own evidence" : "evidence of " who[$17], who[$8]
      if ($2 != $12) printf "; purpose %d, made for %d", $2, $12; else printf "; purpose %d", $2
      if ($4 != $14 && $2 != 3) printf "; connection %d, made on %d", $4, $14
      if ($5 != $15 || $6 != $16) printf "; mesh %d incarnation %d, lives in %d and %d", $5, $6, $15, $16
      if ($7 != $18 && !($7 == 0)) printf "; made for %s", who[$18]
      if ($3 == $13) printf "; both are TLS %s", roles[$3]
      if ($9 != $19) printf "; HELLO_I %s, made over %s", hello($9), hello($19)
      if ($10 != $20) printf "; HELLO_R %s, made over %s", hello($10), hello($20)
      if ($2 == 3 && $11 != $17) printf "; the TLS key is of %s", who[$11]
      printf "\n"
    }'
}

case "${1:-all}" in
-D*)
  check "$work/one" "$@"
  cat "$work/one/found"
  exit
  ;;
matrix)
  printf '%-12s %s\n' "without" "1 channel  2 re-attest  3 RA-TLS  4 challenge  5 enrolment"
  for field in PURPOSE ROLE MESH_ID INCARNATION ATTESTER VERIFIER HELLO_I HELLO_R SPKI EKM; do
    row=
    for purpose in 1 2 3 4 5; do
      check "$work/$field$purpose" -DNR=2 -DNO_$field -DONLY=$purpose
      case "$(cat "$work/$field$purpose/found")" in
      none*) row+="$(printf '%-11s' -)" ;;
      *) row+="$(printf '%-11s' "$purpose")" ;;
      esac
    done
    printf '%-12s %s\n' "$(tr A-Z_ a-z' ' <<<$field)" "$row"
  done
  exit
  ;;
esac

# What is checked: what it is called, what must come out (none, or a counterexample), macros.
variants='complete, three runs|none|-DNR=3
complete, exporter known|none|-DNR=3 -DEXPORTER_KNOWN
complete, exporter known, HELLOs unordered|none|-DEXPORTER_KNOWN -DUNORDERED -DNR=2
without purpose, exporter known|some|-DNR=2 -DEXPORTER_KNOWN -DNO_PURPOSE
without role, exporter known, HELLOs unordered|some|-DNR=2 -DEXPORTER_KNOWN -DUNORDERED -DNO_ROLE
without mesh id|some|-DNR=2 -DNO_MESH_ID
without incarnation|some|-DNR=2 -DNO_INCARNATION
without attester id|some|-DNR=2 -DNO_ATTESTER
without verifier id|some|-DNR=2 -DNO_VERIFIER
without HELLO_I|some|-DNR=2 -DNO_HELLO_I
without HELLO_R|some|-DNR=2 -DNO_HELLO_R
without SPKI hash|some|-DNR=2 -DNO_SPKI
without EKM|some|-DNR=2 -DNO_EKM -DONLY=1
fast, complete, three runs|none|-DFAST -DNR=3
fast, MAC over the channel alone|none|-DFAST -DNR=3 -DMAC_OVER_CHANNEL
fast, without binder|some|-DFAST -DNR=2 -DNO_BIND
fast, MAC over the channel alone, without direction|some|-DFAST -DNR=2 -DMAC_OVER_CHANNEL -DNO_DIRECTION
honest channel can complete|some|-DNR=2 -DREACH=1
honest re-attestation can complete|some|-DNR=2 -DREACH=2
honest certificate can be believed|some|-DNR=2 -DREACH=3
honest challenge can complete|some|-DNR=2 -DREACH=4
honest enrolment can complete|some|-DNR=2 -DREACH=5
honest fast exchange can complete|some|-DFAST -DNR=2 -DREACH=1'

# Two at a time: the big ones need half a gigabyte each.
while IFS='|' read -r name want macros; do
  # shellcheck disable=SC2086
  check "$work/$name" $macros &
  while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n; done
done <<<"$variants"
wait
bad=0
while IFS='|' read -r name want macros; do
  found=$(cat "$work/$name/found")
  case "$want:$found" in
  none:none*) says="no counterexample ($found)" ;;
  some:none* | *broken* | none:*) says="WRONG: $found" bad=1 ;;
  *) case "$name" in honest*) says="yes" ;; *) says="counterexample: $found" ;; esac ;;
  esac
  printf '%-52s %s\n' "$name" "$says"
done <<<"$variants"
exit $bad
