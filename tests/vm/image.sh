#!/bin/sh
# Makes the guest's root tree: a small Debian with systemd. Usage: tests/vm/image.sh DIRECTORY   (root needed)
#   SUITE   Debian release (trixie)
#   MIRROR  archive to take it from (this machine's own)
set -eu
root=$1
suite=${SUITE:-trixie}
if [ -e "$root/.ready-2-$suite" ]; then exit 0; fi
mirror=${MIRROR:-$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -n 1)}
mirror=${mirror:-$(sed -n 's/^deb \(\[.*\] \)\{0,1\}\([^ ]*\) .*/\2/p' /etc/apt/sources.list 2>/dev/null | head -n 1)}
: "${mirror:?set MIRROR to a Debian archive}"
rm -rf "$root"
# Tests must not wait for what a guest without hardware and logins has no use for.
mmdebstrap --quiet --variant=apt \
    --include=systemd,systemd-sysv,dbus,passwd,libpam-systemd,curl,iproute2,procps,kmod,linux-image-cloud-amd64,initramfs-tools,zstd \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --keyring=/usr/share/keyrings/debian-archive-keyring.gpg "$suite" "$root" "$mirror"
# What the kernel needs to find its disk, and no more: the emulator unpacks it slowly.
printf '%s\n' virtio_pci virtio_blk >>"$root/etc/initramfs-tools/modules"
echo 'MODULES=list' >"$root/etc/initramfs-tools/conf.d/small"
chroot "$root" update-initramfs -u >/dev/null
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
: >"$root/etc/fstab"
for unit in apt-daily.timer apt-daily-upgrade.timer fstrim.timer e2scrub_all.timer dpkg-db-backup.timer getty.target \
    systemd-firstboot.service systemd-udevd.service systemd-udev-trigger.service systemd-networkd.service \
    systemd-timesyncd.service systemd-logind.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
cat >"$root/etc/systemd/system/payload.service" <<'UNIT'
[Unit]
Description=What the test brought along
After=basic.target dbus.service
[Service]
Type=oneshot
Environment=HOME=/root
# In a container the payload is a directory of the host's, in a machine a disk.
ExecStartPre=-/bin/sh -c '[ ! -b /dev/vdb ] || mount /dev/vdb /payload'
ExecStart=-/bin/sh -c 'cd /payload && if [ -e log-to ]; then exec >"$(cat log-to)" 2>&1; else exec >log 2>&1; fi; \
    bash ./checks.sh; status=$?; echo "status $status"; echo $status >status'
# Unless a check wants the guest to boot again.
ExecStopPost=/bin/sh -c '[ -e /run/again ] || systemctl poweroff --force' 
StandardOutput=null
TimeoutStartSec=infinity
UNIT
mkdir -p "$root/payload" "$root/etc/systemd/system/multi-user.target.wants"
ln -sf ../payload.service "$root/etc/systemd/system/multi-user.target.wants/payload.service"
touch "$root/.ready-2-$suite"
