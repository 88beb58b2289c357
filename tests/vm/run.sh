#!/bin/sh
# Boots the guest under its own systemd in a container, lets it run checks.sh on the package, and ends with its status.
# Usage: tests/vm/run.sh PACKAGE.deb   (root, mmdebstrap and systemd-container needed)
#   SUITE    Debian release of the guest (trixie)
#   SECONDS_MOST  time limit (600)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tree=$(cd "$here/../.." && pwd)
package=$(realpath "$1")
suite=${SUITE:-trixie}
for tool in mmdebstrap systemd-nspawn unshare; do
    command -v "$tool" >/dev/null || { echo "run.sh: $tool is missing: apt install mmdebstrap systemd-container" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "run.sh: booting a guest needs root" >&2; exit 1; }
image=$tree/target/vm/$suite
mkdir -p "$tree/target/vm"
"$here/image.sh" "$image"

# Kernel settings are the host's also inside of the container; whatever happens, they end as they began.
pages=/sys/kernel/mm
settings=$(sed -n 's/^\([a-z_.]*\) = .*/\1/p' "$tree/sysctl/60-omni-inferd.conf")
work=$(mktemp -d)
for key in $settings; do
    file=/proc/sys/$(echo "$key" | tr . /)
    [ ! -e "$file" ] || echo "$(cat "$file") $file"
done >"$work/sysctl"
for file in $pages/transparent_hugepage/enabled $pages/transparent_hugepage/shmem_enabled; do
    [ ! -e "$file" ] || echo "$(sed 's/.*\[\(.*\)\].*/\1/' "$file") $file"
done >>"$work/sysctl"
for file in $pages/hugepages/*/nr_hugepages; do echo "$(cat "$file") $file"; done >>"$work/sysctl"
restore() {
    while read -r value file; do echo "$value" >"$file" || true; done <"$work/sysctl"
    rm -rf "$work"
}
trap restore EXIT

mkdir -p "$work/payload" "$work/overlay"
cp "$here/checks.sh" "$here/lib.sh" "$package" "$tree/models/omni-stories-q8_0.gguf" "$work/payload/"
cp "$package" "$work/payload/package.deb"
"$here/repack.sh" "$package" "$work/payload/newer.deb"
export image work
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes SYSTEMD_LOG_LEVEL=err
# Its own mounts, so that the guest sees one cgroup2 tree also where the host has version 1, and writes to an overlay.
unshare --mount --propagation private sh -c '
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t tmpfs tmpfs "$work/overlay" && mkdir "$work/overlay/upper" "$work/overlay/work" "$work/overlay/root"
    mount -t overlay overlay -o "lowerdir=$image,upperdir=$work/overlay/upper,workdir=$work/overlay/work" "$work/overlay/root"
    timeout -k 5 "${SECONDS_MOST:-600}" systemd-nspawn --quiet --directory "$work/overlay/root" --boot --register=no \
        --keep-unit --private-network --capability=all --bind "$work/payload:/payload" --console=pipe \
        --hostname=guest >"$work/console" 2>&1 </dev/null' || true
grep -v '^status [0-9]*$' "$work/payload/log" 2>/dev/null || true
status=$(cat "$work/payload/status" 2>/dev/null || true)
if [ -z "$status" ]; then
    echo "run.sh: the guest gave no status; its console:" >&2
    tail -n 40 "$work/console" >&2
    exit 1
fi
exit "$status"
