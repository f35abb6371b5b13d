#!/usr/bin/env bash
# Ticks as server-sent events with curl. Connects again, and goes on behind the last event.
#
#   events.sh [CODE ...]      ticks of these codes (600519.SH 000001.SZ)
#
# QMT_BRIDGE_URL is the gateway (http://127.0.0.1:8000), QMT_BRIDGE_API_KEY the key. Needs bash and curl; tried with bash 5.2
# and curl 7.88. With `jq` behind it: events.sh | jq -c '.data'
# Lines: the events as JSON, with position and times. What is told beside them (acks, gaps, errors) goes to stderr.
set -euo pipefail

codes=${*:-600519.SH 000001.SZ}
url="${QMT_BRIDGE_URL:-http://127.0.0.1:8000}/sse/realtime?stocks=${codes// /,}&seq=true&complete=true"
# From this moment on. With a start the id of the last event is a position from which the store goes on, so nothing is lost.
url+="&start=$(date +%s%3N)"
last=''
attempt=0

# As a file, so that no other user sees the key in the list of processes.
headers() {
    [[ -z ${QMT_BRIDGE_API_KEY:-} ]] || printf 'header = "Authorization: Bearer %s"\n' "$QMT_BRIDGE_API_KEY"
    [[ -z $last ]] || printf 'header = "Last-Event-ID: %s"\n' "$last"
}

trap 'exit 130' INT
while true; do
    event='' id='' refused=''
    # The gateway sends a comment after 15 s without an event: 40 s without a byte are a lost connection.
    while IFS= read -r line; do
        case $line in
        'event: '*) event=${line#event: } ;;
        'id: '*) id=${line#id: } ;;
        'data: '*)
            attempt=0
            if [[ -n $event ]]; then echo "${line#data: }" >&2; else echo "${line#data: }"; fi
            ;;
        '') # The end of an event: it counts now, and not before.
            last=${id:-$last}
            event='' id=''
            ;;
        'status 4'*) refused=${line#status } ;;
        esac
    done < <(curl --silent --show-error --no-buffer --speed-limit 1 --speed-time 40 --write-out '\nstatus %{http_code}\n' \
        --config <(headers) "$url" || true)
    if [[ $refused && $refused != 429 ]]; then
        echo "refused with HTTP $refused" >&2
        exit 1
    fi
    # 0.5 s, doubled up to 32 s, less up to a half of it by chance.
    longest=$((500 << (attempt < 6 ? attempt++ : 6)))
    wait=$((longest / 2 + RANDOM % (longest / 2)))
    echo "lost; again in $wait ms" >&2
    sleep "$((wait / 1000)).$(printf %03d $((wait % 1000)))"
done
