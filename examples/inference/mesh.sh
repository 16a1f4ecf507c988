#!/usr/bin/env bash
# A trial mesh of three organisations on this machine, on simulated evidence, for README.md:
#
#   mesh.sh start DIR OWNER    OWNER is Charlie's public key; Bob's node serves "triage" for it
#   mesh.sh stop DIR
#
# docs/OPERATIONS.md explains each of these commands. Bob's HTTPS endpoint is $BOB.
set -Eeuo pipefail
BOB=${BOB:-127.0.0.1:8443}
orgs=(alpha bob gamma)

# field NAME FILE: one text out of a line of JSON
field() { sed "s/.*\"$1\":\"\([^\"]*\)\".*/\1/" "$2"; }

# await FILE REGEXP [COMMAND...]: until FILE, or what COMMAND writes to it, matches; a FILE
# that a daemon wrote an error to never will
await() {
  local file=$1 want=$2 i; shift 2
  for ((i = 0; i < 900; i++)); do
    if (($#)); then "$@" > "$file" 2>/dev/null || true; fi
    if grep -q "$want" "$file" 2>/dev/null; then return; fi
    if ! (($#)) && grep -q '^{"error"' "$file" 2>/dev/null; then
      echo "mesh.sh: $file: $(cat "$file")" >&2
      return 1
    fi
    sleep 0.1
  done
  echo "mesh.sh: waited 90 s for $want in $file" >&2
  return 1
}

# daemon NAME COMMAND...: a process that outlives this script
daemon() {
  local name=$1; shift
  setsid nohup "$@" > "$name.json" 2> "$name.log" < /dev/null &
  echo $! >> pids
}

start() {
  local owner=$1 org public
  if [ -n "$(ls -A)" ]; then
    echo "mesh.sh: $PWD is not empty: name a new directory" >&2
    exit 2
  fi
  # A mesh that does not come up leaves nothing running.
  trap 'trap - ERR; stop' ERR
  trap 'trap - ERR; stop; exit 130' INT TERM
  meshnode version --json > version.json
  daemon sim meshnode sim-platform --dir sim --json
  await sim.json '"root"'
  {
    printf 'name: inference\norigin: sim.example.org/inference\nallow_sim: true\norganisations:\n'
    for org in "${orgs[@]}"; do
      meshnode keygen --role govern -o "$org-govern.pem" --json > "$org-govern.json"
      meshnode keygen --role enroll -o "$org-enroll.pem" --json > "$org-enroll.json"
      printf '  - id: %s\n    keys:\n      - {role: govern, public: %s}\n      - {role: enroll, public: %s}\n' \
        "$org" "$(field public "$org-govern.json")" "$(field public "$org-enroll.json")"
    done
    printf 'kinds: {member: [sim], seat: [sim], aggregator: [sim]}\nroots: {sim: [%s]}\n' "$(field root sim.json)"
    printf 'entries:\n  - {kind: sim, measurement: %s, roles: [member, seat]}\n' "$(field measurement version.json)"
  } > spec.yaml
  meshnode genesis new spec.yaml -o genesis.json > genesis.txt
  for org in "${orgs[@]}"; do meshnode genesis sign genesis.json --key "$org-govern.pem" > /dev/null; done
  printf 'releases:\n  - {kind: sim, measurement: %s, roles: [seat]}\nnodes:\n  - {name: n1, roles: [seat]}\n' \
    "$(field measurement version.json)" > releases.yaml
  for org in "${orgs[@]}"; do
    daemon "$org-enroller" meshnode enroll serve --genesis genesis.json --key "$org-enroll.pem" \
      --releases releases.yaml --dir "$org-enroller" --listen 127.0.0.1:0 --json
    await "$org-enroller.json" '"spki"'
  done
  for org in "${orgs[@]}"; do
    {
      printf 'genesis: genesis.json\norganisation: %s\nnode: n1\nroles: [seat]\ndata: %s\n' "$org" "$org"
      printf 'listen: [/ip4/127.0.0.1/tcp/0]\npublic: %s\npeers:\n' "$(public "$org")"
      for peer in "${orgs[@]}"; do [ "$peer" = "$org" ] || printf '  - http://%s\n' "$(public "$peer")"; done
      printf 'enroller: {url: "%s", spki: %s}\n' "$(field url "$org-enroller.json")" "$(field spki "$org-enroller.json")"
      printf 'attester: {sim: sim/sim.sock}\n'
      if [ "$org" = bob ]; then printf 'https: %s\nservices:\n  - {name: triage, owner: %s}\n' "$BOB" "$owner"; fi
    } > "$org.yaml"
    daemon "$org-node" meshnode run --config "$org.yaml" --json
    await "$org-node.json" '"peer"'
  done
  for org in "${orgs[@]}"; do
    await "$org-status.json" '"phase":"member".*"level":"strong"' meshnode status --node "$org" --json
  done
  echo "three organisations, all members; Bob's endpoint is https://$BOB"
}

# public ORG: the public address of an organisation's node
public() {
  case $1 in
    alpha) echo "${ALPHA_PUBLIC:-127.0.0.1:7101}" ;;
    bob) echo "${BOB_PUBLIC:-127.0.0.1:7102}" ;;
    gamma) echo "${GAMMA_PUBLIC:-127.0.0.1:7103}" ;;
  esac
}

stop() {
  local pid
  [ -e pids ] || return 0
  for pid in $(tac pids); do kill "$pid" 2>/dev/null || true; done
  for pid in $(cat pids); do
    for ((i = 0; i < 100; i++)); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  done
  rm pids
}

case $#-${1-} in
  3-start) mkdir -p "$2" && cd "$2" && start "$3" ;;
  2-stop) cd "$2" && stop ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
