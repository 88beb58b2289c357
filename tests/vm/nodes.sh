#!/bin/bash
# Runs as root in a guest with four NUMA nodes: what is installed comes back by itself after a boot; then where weights lie.
. ./lib.sh
if [ ! -e /var/booted ]; then
    holds "the package installs" dpkg -i /payload/package.deb
    mkdir -p /srv/models; cp /payload/omni-stories-q8_0.gguf /srv/models/story.gguf
    {
        printf '\n[[model]]\nid = "story"\npath = "/srv/models/story.gguf"\npreload = true\nthreads = 1\n'
        for wish in spread=interleave bound=bind:2 rows=partition; do
            printf '[[model]]\nid = "%s"\npath = "/payload/large.gguf"\ncontext = 64\nparallel = 1\nprefill_chunk = 16\nnuma = "%s"\n' \
                "${wish%=*}" "${wish#*=}"
        done
        printf '[[model]]\nid = "absent"\npath = "/srv/models/story.gguf"\nnuma = "bind:7"\n'
        printf '[[model]]\nid = "crowded"\npath = "/srv/models/story.gguf"\ncontext = 100000\nparallel = 4\nnuma = "bind:1"\n'
    } >>/etc/omni-inferd/config.toml
    omni-proxy --hash-key guest >/etc/omni-inferd/keys 2>/dev/null
    chown root:omni-keys /etc/omni-inferd/keys; chmod 640 /etc/omni-inferd/keys
    [ "$failed" = 0 ] || finish
    echo "$count" >/var/booted
    touch /run/again
    echo "# it boots again"
    sync
    systemctl start --no-block reboot.target
    sleep 600
fi
count=$(cat /var/booted)
soon "after a boot the daemon is there by itself" systemctl is-active omni-inferd.service
soon "and so is its model" story_ready
holds "and answers" complete --unix-socket $sock http://omni/v1/completions

echo "# four nodes"
omnictl doctor >/tmp/doctor 2>&1
holds "doctor warns of four nodes on one socket" grep -E '^warn +numa' /tmp/doctor
holds "with what they cost, and what to do" grep -E '^warn +numa.*5\.2 against.*NPS1' /tmp/doctor
holds "the topology shows them" bash -c "omnictl --socket $sock status --topology | grep -c -i 'node [0-3]' | grep -qx '[4-9]'"
holds "a model is spread" omnictl --socket $sock load spread
all=0
for node in 0 1 2 3; do all=$((all + $(on_node spread $node))); done
for node in 0 1 2 3; do holds "a quarter of it is on node $node" between $((all * 22 / 100)) "$(on_node spread $node)" $((all * 28 / 100)); done
# The same from the kernel's mouth: pages of memory files that the worker has mapped.
mapped_on() { grep 'file=/memfd:omni-weights' /proc/"$(pid_of "$1")"/numa_maps | grep -o "N$2=[0-9]*" | awk -F= '{ n += $2 } END { print n * 4096 }'; }
# Not at each moment: pages that move to huge ones are nowhere for a while.
kernel_agrees() { is "$(mapped_on "$1" "$2")" "$(on_node "$1" "$2")"; }
for node in 0 3; do soon "the kernel says so for node $node" kernel_agrees spread $node; done
# How often the node changes from one stretch of 17 pages to the next, as the kernel says (move_pages).
changes() { perl ./changes.pl "$(pid_of "$1")"; }
holds "page by page" test "$(changes spread)" -gt 1000
holds "it is unloaded" omnictl --socket $sock unload spread
omnictl --socket $sock vault evict >/dev/null
holds "a model is partitioned" omnictl --socket $sock load rows
for node in 0 1 2 3; do holds "a quarter of its rows is on node $node" between $((all * 22 / 100)) "$(on_node rows $node)" $((all * 28 / 100)); done
# Nine large matrices, each in four parts, and the small ones between them.
holds "in one stretch for each matrix" between 27 "$(changes rows)" 150
holds "it is unloaded, too" omnictl --socket $sock unload rows
omnictl --socket $sock vault evict >/dev/null
holds "a model is bound" omnictl --socket $sock load bound
holds "all of it is on its node" is "$(on_node bound 0) $(on_node bound 1) $(on_node bound 3)" "0 0 0"
holds "to the byte" is "$(on_node bound 2)" "$all"
soon "the kernel says so" kernel_agrees bound 2
holds "its threads run there, too" is "$(cat /proc/"$(pid_of bound)"/task/*/comm 2>/dev/null | grep -c -E '^(engine|compute)') $(for t in /proc/"$(pid_of bound)"/task/*; do
    grep -qs -E '^(engine|compute)' "$t/comm" && sed -n 's/^Cpus_allowed_list:\t//p' "$t/status"; done | sort -u)" "1 2"
omnictl --socket $sock load absent >/tmp/out 2>&1
holds "a node that there is not is refused by name" bash -c "curl -sS --unix-socket $sock http://omni/control/v1/models/absent | grep -q 'bind:7'"
omnictl --socket $sock load crowded >/tmp/out 2>&1
holds "a model that its node cannot hold is refused, however much the others have" failed crowded
holds "with the numbers" bash -c "curl -sS --unix-socket $sock http://omni/control/v1/models/crowded | grep -q 'missing'"
holds "nothing was killed" no_kill

echo "# no route out"
ip netns add clients
ip link add omni0 type veth peer name omni1 netns clients
ip addr add 10.9.0.1/24 dev omni0; ip link set omni0 up
ip -n clients addr add 10.9.0.2/24 dev omni1; ip -n clients link set omni1 up
mkdir -p /etc/systemd/system/omni-proxy.socket.d
printf '[Socket]\nListenStream=\nListenStream=10.9.0.1:8080\n' >/etc/systemd/system/omni-proxy.socket.d/listen.conf
systemctl daemon-reload; systemctl start omni-proxy.socket
reach() { "$@" curl -sS -o /dev/null --max-time 20 http://10.9.0.1:8080/health; }
holds "another network reaches the proxy" reach ip netns exec clients
fails "from within the daemon's namespace nothing can be reached" reach nsenter -t "$(main_pid)" -n
fails "nor from within a worker's" reach nsenter -t "$(pid_of story)" -n
finish
