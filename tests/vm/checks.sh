#!/bin/bash
# Runs as root in the guest: from a bare system to a purged package. Each check says what must hold; one that
# does not makes the end status 1.
. ./lib.sh

# What the package will be measured against at the end.
find / -xdev -path /proc -prune -o -path /sys -prune -o -path /run -prune -o -path /tmp -prune -o -path /payload -prune \
    -o -path /var/log -prune -o -path /var/lib/dpkg -prune -o -path /var/cache -prune -o -path /var/lib/apt -prune \
    -o -path /var/lib/systemd -prune -o -print | sort >/tmp/before
cp /etc/passwd /etc/group /tmp/

echo "# install"
holds "the package installs" dpkg -i /payload/package.deb
soon "the daemon is active" systemctl is-active omni-inferd.service
holds "the daemon is enabled" systemctl is-enabled omni-inferd.service omni-inferd.socket
holds "the socket has its owner, group and mode" is "$(stat -c '%U %G %a' $sock)" "omni-inferd omni 660"
holds "it runs as its own user" is "$(stat -c %U /proc/"$(main_pid)")" omni-inferd
fails "the proxy waits until it is asked for" systemctl is-active omni-proxy.socket
holds "doctor says nothing fails" omnictl doctor
for unit in omni-inferd.service omni-proxy.service omni-inferd-thp.service omni-inferd.socket omni-proxy.socket; do
    holds "$unit is valid" systemd-analyze verify --man=no "$unit"
done
holds "the daemon's exposure is at most 3.0" systemd-analyze security --threshold=30 omni-inferd.service
holds "the proxy's exposure is at most 1.5" systemd-analyze security --threshold=15 omni-proxy.service

echo "# a model"
install -D -m 644 /payload/omni-stories-q8_0.gguf /srv/models/story.gguf
printf '\n[[model]]\nid = "story"\npath = "/srv/models/story.gguf"\npreload = true\nthreads = 1\n' >>/etc/omni-inferd/config.toml
holds "the configuration is read again" systemctl reload omni-inferd.service
holds "the model loads" omnictl --socket $sock load story
holds "it completes over the socket" complete --unix-socket $sock http://omni/v1/completions
worker() { pgrep -u omni-inferd -f 'omni-inferd worker' | head -n 1; }
holds "a worker is killed for memory before the daemon" test \
    "$(cat /proc/"$(worker)"/oom_score_adj)" -gt "$(cat /proc/"$(main_pid)"/oom_score_adj)"
printf 'oops = 1\n' >>/etc/omni-inferd/config.toml
fails "a wrong configuration fails the reload" systemctl reload omni-inferd.service
holds "and changes nothing" complete --unix-socket $sock http://omni/v1/completions
sed -i '$d' /etc/omni-inferd/config.toml

echo "# who may do what"
useradd reader; useradd -G omni member; useradd -G omni,omni-admin boss
as() { local user=$1; shift; runuser -u "$user" -- "$@"; }
fails "a stranger cannot connect" as reader curl -sS --unix-socket $sock http://omni/v1/models
holds "a member of omni completes" as member curl -sS --fail-with-body -d "$body" --unix-socket $sock http://omni/v1/completions
fails "a member of omni cannot control" as member omnictl --socket $sock unload story
has "omni-admin" /tmp/out && ok "and is told which group it takes" || fail "the refusal names omni-admin"
holds "a member of omni-admin controls" as boss omnictl --socket $sock unload story
holds "and loads again" as boss omnictl --socket $sock load story
inside() { nsenter -t "$(main_pid)" -n "$@"; }
holds "the daemon's network is empty" is "$(inside ip -o link | grep -vc ' lo:')" 0
fails "nothing can be reached from inside" inside curl -sS --max-time 3 http://192.0.2.1/

echo "# the proxy"
omni-proxy --hash-key guest >>/etc/omni-inferd/keys 2>/tmp/key
key=$(sed 's/.* //' /tmp/key)
chown root:omni-keys /etc/omni-inferd/keys; chmod 640 /etc/omni-inferd/keys
# Clients on another network, and the proxy told to listen there.
ip netns add clients
ip link add omni0 type veth peer name omni1 netns clients
ip addr add 10.9.0.1/24 dev omni0; ip link set omni0 up
ip -n clients addr add 10.9.0.2/24 dev omni1; ip -n clients link set omni1 up
from="ip netns exec clients"
url=http://10.9.0.1:8080
mkdir -p /etc/systemd/system/omni-proxy.socket.d
printf '[Socket]\nListenStream=\nListenStream=10.9.0.1:8080\n' >/etc/systemd/system/omni-proxy.socket.d/listen.conf
systemctl daemon-reload
holds "the proxy's socket starts" systemctl enable --now omni-proxy.socket
fails "no process until somebody connects" systemctl is-active omni-proxy.service
holds "a completion with a key, from another network" complete -H "authorization: Bearer $key" $url/v1/completions
uid=$(stat -c %u /proc/"$(prop omni-proxy.service MainPID)")
# systemd takes dynamic users from this range.
holds "started by its socket, as a user of its own" test "$uid" -ge 61184 -a "$uid" -le 65519
fails "no completion without a key" complete $url/v1/completions
holds "which is refused as 401" is "$($from curl -s -o /dev/null -w '%{http_code}' -d "$body" $url/v1/completions)" 401
holds "control is not behind it" is \
    "$($from curl -s -o /dev/null -w '%{http_code}' -H "authorization: Bearer $key" $url/control/v1/status)" 404
holds "the proxy has no network of its own" is "$(nsenter -t "$(prop omni-proxy.service MainPID)" -n ip -o link | grep -vc ' lo:')" 0

echo "# accidents"
pid=$(main_pid); kill -9 "$pid"
soon "killed, the daemon comes back" changed_pid "$pid"
soon "with its model" story_ready
holds "clients see nothing of it" complete -H "authorization: Bearer $key" $url/v1/completions
old=$(worker); kill -9 "$old"
other_worker() { local now; now=$(worker); [ -n "$now" ] && [ "$now" != "$old" ] && story_ready; }
soon "killed, a worker comes back" other_worker
holds "the daemon was not touched" is "$(prop omni-inferd.service NRestarts)" 1
mkdir -p /run/systemd/system/omni-inferd.service.d
printf '[Service]\nWatchdogSec=2s\n' >/run/systemd/system/omni-inferd.service.d/quick.conf
systemctl daemon-reload; systemctl restart omni-inferd.service
pid=$(main_pid); kill -STOP "$pid"
soon "frozen, the daemon is killed by the watchdog and comes back" changed_pid "$pid"
holds "the journal says so" bash -c 'journalctl -u omni-inferd.service | grep -qi "watchdog timeout"'
rm -r /run/systemd/system/omni-inferd.service.d; systemctl daemon-reload
printf 'oops = 1\n' >>/etc/omni-inferd/config.toml
systemctl restart omni-inferd.service 2>/dev/null
sleep 3
holds "a wrong configuration ends with 78" is "$(prop omni-inferd.service ExecMainStatus)" 78
holds "and is not tried again" is "$(systemctl is-failed omni-inferd.service)" failed
sed -i '$d' /etc/omni-inferd/config.toml
systemctl reset-failed omni-inferd.service; systemctl restart omni-inferd.service

echo "# the vault"
soon "the model is back" story_ready
soon "its weights are with the service manager" kept
pid=$(main_pid); old=$(worker)
# The same file by every mark, but nothing in it: whoever read it would notice.
cp -p /srv/models/story.gguf /srv/models/copy
modified=$(stat -c %y /srv/models/story.gguf)
dd if=/dev/zero of=/srv/models/story.gguf bs=4k count=$(($(stat -c %s /srv/models/story.gguf) / 4096)) conv=notrunc status=none
touch -d "$modified" /srv/models/story.gguf
systemctl restart omni-inferd.service
soon "a restart finds them" from_vault
holds "with a new daemon and a new worker" test "$(main_pid)" != "$pid" -a "$(worker)" != "$old"
holds "within a second of the worker's start" quick
holds "and it completes" complete --unix-socket $sock http://omni/v1/completions
kill -9 "$(main_pid)"
soon "a killed daemon's successor finds them, too" from_vault
holds "their checksums are right" omnictl --socket $sock vault verify
holds "they can be let go" omnictl --socket $sock vault evict "$(omnictl --socket $sock vault --json | sed -n 's/.*"id": *"\([^"]*\)".*/\1/p')"
forgotten() { is "$(prop omni-inferd.service NFileDescriptorStore)" 0; }
soon "also by the service manager" forgotten
cat /srv/models/copy >/srv/models/story.gguf; rm /srv/models/copy
systemctl restart omni-inferd.service
soon "then the file is read" story_ready
fails "and not the vault" from_vault
soon "and its weights are kept again" kept

echo "# tuning"
swappiness=$(cat /proc/sys/vm/swappiness); dirty=$(cat /proc/sys/vm/dirty_ratio)
echo 60 >/proc/sys/vm/swappiness; echo 20 >/proc/sys/vm/dirty_ratio
holds "tune shows" omnictl tune
holds "and changes nothing by that" is "$(cat /proc/sys/vm/swappiness)" 60
holds "tune applies" omnictl tune --apply
holds "at once" is "$(cat /proc/sys/vm/swappiness) $(cat /proc/sys/vm/dirty_ratio)" "1 40"
holds "and for the next boot" has "^vm.swappiness = 1" /etc/sysctl.d/60-omni-inferd.conf
holds "tune rolls back" omnictl tune --rollback
holds "to what was" is "$(cat /proc/sys/vm/swappiness) $(cat /proc/sys/vm/dirty_ratio)" "60 20"
fails "and leaves no drop-in" test -e /etc/sysctl.d/60-omni-inferd.conf
omnictl tune --apply >/dev/null

echo "# upgrade"
pid=$(main_pid)
holds "a newer package installs over it" dpkg --force-confold -i /payload/newer.deb
soon "the daemon is a new one" changed_pid "$pid"
holds "the changed configuration stays" has 'id = "story"' /etc/omni-inferd/config.toml
soon "and its model is back, without reading its file" from_vault
printf 'oops = 1\n' >>/etc/omni-inferd/config.toml
pid=$(main_pid)
dpkg --force-confold -i /payload/package.deb >/tmp/told 2>&1
holds "with a wrong configuration the running daemon is left alone" is "$(main_pid)" "$pid"
holds "and the operator told" has "configuration is wrong" /tmp/told
sed -i '$d' /etc/omni-inferd/config.toml

echo "# remove, purge"
holds "the package is removed" dpkg -r omni-inferd
fails "nothing runs" pgrep -x 'omni-(inferd|proxy)'
weights_left() { ls -l /proc/1/fd | grep omni-weights; }
fails "no weights stay with the service manager" weights_left
holds "what tune changed is taken back" is "$(cat /proc/sys/vm/swappiness)" 60
holds "the configuration stays" has 'id = "story"' /etc/omni-inferd/config.toml
holds "and the package is purged" dpkg -P omni-inferd
echo "$swappiness" >/proc/sys/vm/swappiness; echo "$dirty" >/proc/sys/vm/dirty_ratio
for user in reader member boss; do userdel "$user"; groupdel "$user" 2>/dev/null; done
rm -r /srv/models
find / -xdev -path /proc -prune -o -path /sys -prune -o -path /run -prune -o -path /tmp -prune -o -path /payload -prune \
    -o -path /var/log -prune -o -path /var/lib/dpkg -prune -o -path /var/cache -prune -o -path /var/lib/apt -prune \
    -o -path /var/lib/systemd -prune -o -print | sort >/tmp/after
left() { diff /tmp/before /tmp/after | grep '^>' | grep -vE '/etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$|/etc/\.pwd\.lock$'; }
fails "no file is left" left
holds "no user is left" diff <(sort /tmp/passwd) <(sort /etc/passwd)
groups_left() { diff <(cut -d: -f1 /tmp/group | sort) <(cut -d: -f1 /etc/group | sort) | grep omni; }
fails "no group is left" groups_left
finish
