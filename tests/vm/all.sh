#!/bin/sh
# Everything that the package is tested with, one part after the other; ends with 1 when one of them failed.
# Usage: tests/vm/all.sh PACKAGE.deb   (root, lintian, mmdebstrap, systemd-container and qemu-system-x86 needed)
set -u
here=$(dirname "$0")
status=0
part() {
    echo "== $1"
    shift
    began=$(date +%s)
    "$@" || { echo "-- failed"; status=1; }
    echo "-- $(($(date +%s) - began)) s"
}
echo "# $(basename "$1") of $(git -C "$here" rev-parse --short HEAD), $(date -u +%Y-%m-%d)"
part "lintian" lintian --allow-root --fail-on error,warning "$1"
part "install to purge, in a container of ${SUITE:-trixie}" "$here/run.sh" "$1"
part "boots and NUMA nodes" env MODEL_MIB=200 "$here/qemu.sh" "$1" nodes.sh 4 1024
part "huge pages and short memory" "$here/qemu.sh" "$1" memory.sh 1 1536
exit $status
