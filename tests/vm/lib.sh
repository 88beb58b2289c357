# What all checks use; sourced by them in the guest. Each check says what must hold.
set -u
sock=/run/omni-inferd/omni.sock
count=0
failed=0

ok() { count=$((count + 1)); echo "ok $count - $1"; }
fail() { failed=$((failed + 1)); echo "not ok - $1"; tail -n 20 /tmp/out | sed 's/^/    /'; }
holds() { local what=$1; shift; if "$@" >/tmp/out 2>&1; then ok "$what"; else fail "$what"; fi; }
fails() { local what=$1; shift; if "$@" >/tmp/out 2>&1; then fail "$what"; else ok "$what"; fi; }
# At most two minutes, on emulated processors of a busy host, until a command succeeds.
soon() {
    local what=$1; shift
    for _ in $(seq 600); do if "$@" >/tmp/out 2>&1; then ok "$what"; return; fi; sleep 0.2; done
    fail "$what"
}
prop() { systemctl show -P "$2" "$1"; }
is() { [ "$1" = "$2" ] || { echo "$1 is not $2"; return 1; }; }
has() { grep -q -- "$1" "$2"; }
body='{"model":"story","prompt":"Once upon a time","max_tokens":8}'
# Where requests come from: this network, or that of the command named here.
from=
complete() { $from curl -sS --fail-with-body --max-time 20 -d "$body" "$@" | grep -q '"text"'; }
main_pid() { prop omni-inferd.service MainPID; }
healthy() { omnictl --socket $sock health --ready; }
changed_pid() { local now; now=$(main_pid); [ "$now" != 0 ] && [ "$now" != "$1" ] && healthy; }
story_ready() { omnictl --socket $sock ps | grep -q 'story .*ready'; }
# What a model's worker says of how it came by its weights.
read_by() { omnictl --socket $sock status --json | sed -n 's/.*"read_by": *"\([^"]*\)".*/\1/p'; }
from_vault() { story_ready && is "$(read_by)" "the vault"; }
kept() { omnictl --socket $sock vault | grep -q 'the daemon.*/srv/models/story.gguf'; }
# Seconds from the worker's start until it answered.
load_seconds() { omnictl --socket $sock status --json | sed -n 's/.*"load_seconds": *\([0-9.]*\).*/\1/p'; }
quick() { awk -v seconds="$(load_seconds)" 'BEGIN { exit !(seconds <= 1.0) }'; }
# What the control API says of a model, on one line without spaces.
status_of() { curl -sS --unix-socket $sock "http://omni/control/v1/models/$1" | tr -d ' \n'; }
# Bytes of a model's weights on pages of so many bytes; on a NUMA node.
on_pages() { status_of "$1" | sed -n "s/.*{\"page\":$2,\"bytes\":\([0-9]*\)}.*/\1/p" | grep . || echo 0; }
on_node() { status_of "$1" | sed -n "s/.*{\"node\":$2,\"bytes\":\([0-9]*\)}.*/\1/p" | grep . || echo 0; }
ready() { status_of "$1" | grep -q '"state":"ready"'; }
failed() { status_of "$1" | grep -q '"state":"failed"'; }
pid_of() { status_of "$1" | sed -n 's/.*"pid":\([0-9]*\).*/\1/p'; }
between() { [ "$1" -le "$2" ] && [ "$2" -le "$3" ] || { echo "$2 is not within $1 and $3"; return 1; }; }
# What the kernel said since the start of killing for want of memory.
no_kill() { ! dmesg | grep -i -E 'out of memory|oom-kill'; }

# Ends the checks: 1 when one of them did not hold.
finish() {
    echo "$count checks hold, $failed do not"
    [ "$failed" = 0 ] || { journalctl --no-pager -u 'omni*' -n "${1:-200}"; exit 1; }
    exit 0
}
