#!/bin/sh
# Builds omni-inferd_VERSION_amd64.deb from built binaries and the files of this tree. Usage: scripts/deb.sh [OUTDIR]
#   BIN      directory of the binaries (target/release)
#   VERSION  the package's version (Cargo.toml's)
#   PACK     how hard to compress, options of dpkg-deb
#   DEBFULLNAME, DEBEMAIL  who answers for it
set -eu
cd "$(dirname "$0")/.."
bin=${BIN:-target/release}
out=${1:-target/deb}
version=${VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)}
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
chmod 755 "$tree"

# Newest version of the C library that a binary may ask for: Debian 12's. Ubuntu 24.04 and Debian 13 have newer ones.
most=2.36
newest=0
for program in omni-inferd omnictl omni-proxy; do
    install -D -m 755 "$bin/$program" "$tree/usr/bin/$program"
    strip --strip-unneeded --remove-section=.comment "$tree/usr/bin/$program"
    needs=$(objdump -T "$tree/usr/bin/$program" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -uV | tail -n 1)
    newest=$(printf '%s\n%s\n' "$newest" "$needs" | sort -V | tail -n 1)
done
if [ "$(printf '%s\n%s\n' "$newest" "$most" | sort -V | tail -n 1)" != "$most" ]; then
    echo "deb.sh: the binaries ask for glibc $newest; Debian 12 has $most. Build on Debian 12." >&2
    exit 1
fi

put() { install -D -m 644 "$1" "$tree/$2"; }
compress() { install -d "$tree/$(dirname "$2")" && gzip -9n <"$1" >"$tree/$2" && chmod 644 "$tree/$2"; }

for unit in systemd/*; do put "$unit" "usr/lib/systemd/system/$(basename "$unit")"; done
put packaging/sysusers.conf usr/lib/sysusers.d/omni-inferd.conf
put packaging/tmpfiles.conf usr/lib/tmpfiles.d/omni-inferd.conf
put sysctl/60-omni-inferd.conf usr/share/omni-inferd/60-omni-inferd.conf
for host in packaging/hosts/*; do put "$host" "usr/share/omni-inferd/hosts/$(basename "$host")"; done
put config.example.toml etc/omni-inferd/config.toml
put packaging/proxy.toml etc/omni-inferd/proxy.toml
for page in man/*; do compress "$page" "usr/share/man/man${page##*.}/$(basename "$page").gz"; done
for script in completions/bash/*; do put "$script" "usr/share/bash-completion/completions/$(basename "$script")"; done
for script in completions/zsh/*; do put "$script" "usr/share/zsh/vendor-completions/$(basename "$script")"; done
for script in completions/fish/*; do put "$script" "usr/share/fish/vendor_completions.d/$(basename "$script")"; done
doc=usr/share/doc/omni-inferd
put packaging/copyright $doc/copyright
put docs/openapi.json $doc/openapi.json
compress README.md $doc/README.md.gz
changelog=$(mktemp)
sed "1s/(.*)/($version)/" packaging/changelog >"$changelog"
compress "$changelog" $doc/changelog.gz
python3 scripts/licences.py >"$changelog"
compress "$changelog" $doc/licences.txt.gz
rm "$changelog"
put packaging/lintian-overrides usr/share/lintian/overrides/omni-inferd

install -d "$tree/DEBIAN"
for script in postinst prerm postrm; do install -m 755 packaging/$script "$tree/DEBIAN/$script"; done
(cd "$tree" && find etc -type f | sed 's|^|/|' | sort) >"$tree/DEBIAN/conffiles"
(cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
cat >"$tree/DEBIAN/control" <<CONTROL
Package: omni-inferd
Version: $version
Architecture: amd64
Maintainer: ${DEBFULLNAME:-The authors of omni-inferd} <${DEBEMAIL:-root@localhost}>
Installed-Size: $(du -sk --exclude=DEBIAN "$tree" | cut -f1)
Depends: libc6 (>= $newest), libgcc-s1, systemd (>= 250) | systemd-standalone-sysusers, init-system-helpers (>= 1.52)
Recommends: passwd
Section: net
Priority: optional
Description: large language models on one bare-metal host
 omni-inferd loads GGUF weights itself, puts every tensor where it serves best
 and serves any OpenAI client over a Unix socket: one daemon without a network,
 one worker process for each model.
 .
 omni-proxy passes the API on to TCP, with keys and limits. omnictl steers the
 daemon, examines the host (omnictl doctor) and tunes it (omnictl tune).
CONTROL
mkdir -p "$out"
package=$out/omni-inferd_${version}_amd64.deb
# The same input gives the same package.
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}"
# shellcheck disable=SC2086
dpkg-deb --root-owner-group ${PACK:-} --build "$tree" "$package" >/dev/null
echo "$package"
