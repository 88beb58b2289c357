#!/bin/bash
# Boots the guest in an emulated machine of its own, with its own kernel, memory and NUMA nodes, lets it run one of the
# check scripts on the package, and ends with its status.
# Usage: tests/vm/qemu.sh PACKAGE.deb CHECKS.sh NODES MIB_PER_NODE   (root, mmdebstrap and qemu-system-x86 needed)
#   SUITE    Debian release of the guest (trixie)
#   ACCEL    kvm or tcg (kvm where a machine starts with it, else the slow one)
#   MODEL_MIB     size of the large model that the guest finds (500)
#   SECONDS_MOST  time limit of each boot (1800)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
tree=$(cd "$here/../.." && pwd)
package=$(realpath "$1")
checks=$here/$2 nodes=$3 mib=$4
suite=${SUITE:-trixie}
for tool in mmdebstrap qemu-system-x86_64 mke2fs; do
    command -v "$tool" >/dev/null || { echo "qemu.sh: $tool is missing: apt install mmdebstrap qemu-system-x86 e2fsprogs" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "qemu.sh: making the guest's disk needs root" >&2; exit 1; }
image=$tree/target/vm/$suite
mkdir -p "$tree/target/vm"
"$here/image.sh" "$image"
kernel=$(ls "$image"/boot/vmlinuz-* | tail -n 1) initrd=$(ls "$image"/boot/initrd.img-* | tail -n 1)
work=$(mktemp -d -p "$tree/target/vm")
trap 'rm -rf "$work"' EXIT

if [ -z "${ACCEL:-}" ]; then
    ACCEL=tcg
    # The device alone says little: under some hypervisors no machine starts with it.
    if [ -w /dev/kvm ]; then
        { timeout 20 qemu-system-x86_64 -accel kvm -cpu host -M q35 -m 256 -nodefaults -display none -no-reboot \
            -serial "file:$work/probe" -kernel "$kernel" -append "console=ttyS0 panic=-1" </dev/null || true; } >/dev/null 2>&1
        if grep -qs 'Linux version' "$work/probe"; then ACCEL=kvm; fi
    fi
fi
case $ACCEL in
    kvm) accel=(-accel kvm -cpu host) ;;
    # Of one thread, and without the widest exchange: guests with several processors died of the emulator's.
    *) accel=(-accel tcg,thread=single,tb-size=512 -cpu max,cx16=off,la57=off) ;;
esac

disk=$image.ext4
if [ ! -e "$disk" ] || [ "$image/.ready-2-$suite" -nt "$disk" ]; then
    rm -f "$disk"
    mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$image" "$disk" $(($(du -sm "$image" | cut -f1) * 5 / 4 + 400))M >/dev/null
fi
mkdir "$work/payload"
cp "$here/lib.sh" "$here/changes.pl" "$tree/models/omni-stories-q8_0.gguf" "$work/payload/"
cp "$checks" "$work/payload/checks.sh"
cp "$package" "$work/payload/package.deb"
echo /dev/ttyS1 >"$work/payload/log-to"
"$here/grow.py" "$tree/models/omni-stories-q8_0.gguf" "$work/payload/large.gguf" "${MODEL_MIB:-500}"
mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$work/payload" "$work/payload.ext4" $((${MODEL_MIB:-500} + 200))M >/dev/null

numa=()
for ((node = 0; node < nodes; node++)); do
    numa+=(-object "memory-backend-ram,id=m$node,size=${mib}M" -numa "node,nodeid=$node,memdev=m$node,cpus=$node")
done
for ((node = 0; node < nodes; node++)); do
    for ((other = node + 1; other < nodes; other++)); do numa+=(-numa "dist,src=$node,dst=$other,val=12"); done
done
echo "# $(basename "$checks") in a guest with $nodes nodes of $mib MiB ($ACCEL)"
cp --sparse=always "$disk" "$work/disk.ext4"
# A guest that boots again ends the emulator, and a new one begins: as pulling the plug does, it leaves nothing in memory.
again() { [ "$(tr -d '\r' <"$work/log" | tail -n 1)" = "# it boots again" ]; }
boot() {
    timeout -k 5 "${SECONDS_MOST:-1800}" qemu-system-x86_64 "${accel[@]}" -M q35 -smp "$nodes,sockets=1" -m $((mib * nodes))M "${numa[@]}" \
        -nodefaults -display none -no-reboot -device virtio-rng-pci -serial "file:$work/console" \
        -chardev "file,id=log,path=$work/log,append=on" -serial chardev:log \
        -drive "file=$work/disk.ext4,format=raw,if=virtio" -drive "file=$work/payload.ext4,format=raw,if=virtio" \
        -kernel "$kernel" -initrd "$initrd" -append "root=/dev/vda rw console=ttyS0 loglevel=4 panic=-1 \
            systemd.show_status=no mitigations=off nokaslr audit=0 no_timer_check" </dev/null >"$work/qemu" 2>&1 || true
}
boot
if again; then boot; fi
tr -d '\r' <"$work/log" | grep -v '^status [0-9]*$' || true
status=$(tr -d '\r' <"$work/log" | sed -n 's/^status \([0-9]*\)$/\1/p' | tail -n 1)
if [ -z "$status" ]; then
    echo "qemu.sh: the guest gave no status; the emulator and its console:" >&2
    tail -n 5 "$work/qemu" >&2
    tail -n 40 "$work/console" >&2
    exit 1
fi
exit "$status"
