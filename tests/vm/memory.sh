#!/bin/bash
# Runs as root in a guest with one NUMA node and no swap: pages of each size, and what happens when memory is short.
. ./lib.sh
mib=$((1 << 20))
weights=$(stat -c %s /payload/large.gguf)
huge() { echo "$1" >/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages; cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages; }
load() { omnictl --socket $sock load "$1"; }
unload() { omnictl --socket $sock unload "$1"; }
evict_all() { omnictl --socket $sock vault evict; }
available() { awk '/^MemAvailable:/ { print $2 * 1024 }' /proc/meminfo; }
images() { curl -sS --unix-socket $sock http://omni/control/v1/vault | tr -d ' \n' | grep -o '"path":"[^"]*"' | wc -l; }

holds "there is no swap" is "$(wc -l </proc/swaps)" 1
echo never >/sys/kernel/mm/transparent_hugepage/shmem_enabled
holds "the package installs" dpkg -i /payload/package.deb
soon "the daemon is active" systemctl is-active omni-inferd.service
omnictl doctor >/tmp/doctor 2>&1
holds "doctor is silent about one node" grep -E '^ok +numa +1 node' /tmp/doctor
mkdir -p /srv/models; cp /payload/omni-stories-q8_0.gguf /srv/models/story.gguf
ln -s /payload/large.gguf /srv/models/large.gguf; ln -s /payload/large.gguf /srv/models/second.gguf
{
    printf '\n[[model]]\nid = "story"\npath = "/srv/models/story.gguf"\npreload = true\nthreads = 1\n'
    for id in large second; do
        printf '[[model]]\nid = "%s"\npath = "/srv/models/%s.gguf"\nthreads = 1\ncontext = 64\nparallel = 1\nprefill_chunk = 16\n' $id $id
    done
} >>/etc/omni-inferd/config.toml
sed -i 's/^#restart_backoff_max = .*/restart_backoff_max = "2s"/' /etc/omni-inferd/config.toml
holds "the configuration is read" systemctl restart omni-inferd.service
soon "a small model is ready" story_ready

echo "# huge pages: none, some, enough"
holds "with none the model loads" load large
holds "all of it on pages of 4 KiB" between $((weights - mib)) "$(on_pages large 4096)" $((weights + mib))
holds "and nothing on larger ones" is "$(on_pages large 2097152)" 0
unload large >/dev/null; evict_all >/dev/null
holds "100 huge pages are reserved" is "$(huge 100)" 100
holds "with some the model loads" load large
holds "as many as there are, are used" is "$(on_pages large 2097152)" $((200 * mib))
holds "and the rest is on plain ones" between $((weights - 201 * mib)) "$(on_pages large 4096)" $((weights - 199 * mib))
unload large >/dev/null; evict_all >/dev/null
holds "260 huge pages are reserved" is "$(huge 260)" 260
free_huge() { is "$(cat /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages)" 260; }
soon "they are free" free_huge
# Of plain memory there is less now than the weights and their headroom take.
holds "which leaves less plain memory than the model takes" test "$(available)" -lt $((weights + 512 * mib))
holds "with enough the model loads" load large
holds "nothing of it on others" is "$(on_pages large 4096)" 0
holds "all of it on them" between $((weights - mib)) "$(on_pages large 2097152)" $((weights + 3 * mib))
unload large >/dev/null; evict_all >/dev/null
soon "evicted, they are free" free_huge
holds "and are given back" is "$(huge 0)" 0

echo "# memory is short"
two_images() { is "$(images)" 2; }
holds "a large model loads" load large
soon "its weights are kept" two_images
old=$(pid_of large) story=$(pid_of story)
omnictl --socket $sock load second >/tmp/out 2>&1
holds "a second one does not" failed second
status_of second >/tmp/second
for word in weights headroom needed available missing; do
    holds "and is refused with the number: $word" grep -q "$word" /tmp/second
done
holds "nothing was killed" no_kill
holds "the others were not touched" is "$(pid_of large) $(pid_of story)" "$old $story"
holds "and answer" complete --unix-socket $sock http://omni/v1/completions
holds "the large model is unloaded" unload large
holds "its weights stay" two_images
body='{"model":"second","prompt":"Once","max_tokens":1}'
second_answers() { curl -sS --fail-with-body --max-time 120 -d "$body" --unix-socket $sock http://omni/v1/completions; }
soon "until the next request for the second takes their memory" second_answers
holds "which is ready" ready second
holds "the journal says what was let go" bash -c 'journalctl -u omni-inferd.service | grep -q "large.gguf are let go: their memory is needed"'
holds "still nothing was killed" no_kill
soon "the second's weights are kept" two_images
unload second >/dev/null
holds "and stay" two_images
# Another program takes all but 14 MiB of the memory, and has it for some seconds.
perl -e 'my @held;
    sub available { open(my $file, "<", "/proc/meminfo"); local $/; <$file> =~ /MemAvailable: *(\d+)/; $1 >> 10 }
    while (available() > 14) { push @held, chr(@held % 256) x (4 << 20) }
    sleep 15' &
hog=$!
one_image() { is "$(images)" 1; }
soon "a host that runs out of memory gets that of weights that nobody uses" one_image
holds "and whoever took it lives" wait $hog
holds "nothing was killed in the end" no_kill
holds "the small model answers" is "$(pid_of story)" "$story"
finish
