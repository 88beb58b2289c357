#!/bin/sh
# The same package under a higher version: what an upgrade is tested with. Usage: tests/vm/repack.sh IN.deb OUT.deb
set -eu
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
dpkg-deb --raw-extract "$1" "$tree"
sed -i 's/^Version: .*/&+1/' "$tree/DEBIAN/control"
dpkg-deb --root-owner-group -Zgzip --build "$tree" "$2" >/dev/null
