#!/bin/bash
# Runs tests on another Slurm than this machine has: tests/slurm_root.sh trixie tests/backends/on_slurm
#
# Debian 13 (trixie) has 24.11, Debian's testing (forky) 26.05. Its root is made once, by debootstrap, and kept
# in the cache; the tests run in it, with the Python and the packages of this machine. For root only.
set -euo pipefail
suite=$1; shift
tree=$(cd "$(dirname "$0")/.." && pwd)
root=${XDG_CACHE_HOME:-$HOME/.cache}/raysched/slurm-$suite
packages=slurm-wlm,slurm-wlm-basic-plugins,munge,slurmrestd,slurm-wlm-jwt-plugin,openssh-server,openssh-client
packages+=,python3,procps,iproute2,libsqlite3-0,libffi8,libbz2-1.0,liblzma5
if [ ! -e "$root/made" ]; then
    script=/usr/share/debootstrap/scripts/$suite
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
    mirror=http://deb.debian.org/debian
    debootstrap --variant=minbase --include="$packages" "$suite" "$root" "$mirror" "$script"
    touch "$root/made"
fi
mapfile -t folders < <("$tree/.venv/bin/python" -c '
import os, sys
print(*dict.fromkeys([sys.base_prefix, *filter(os.path.isdir, sys.path)]), sep="\n")')
exec unshare --mount --propagation private bash -euc '
root=$1 tree=$2 count=$3; shift 3
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
for folder in /dev /sys /tmp "$tree" "${@:1:count}"; do
    mkdir -p "$root$folder"
    mount --rbind "$folder" "$root$folder"
done
cp /etc/hosts "$root/etc/hosts"
shift "$count"
cd "$root"
exec chroot "$root" env PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    sh -c "cd \"\$1\" && shift && exec .venv/bin/python -m pytest -p no:cacheprovider \"\$@\"" sh "$tree" "$@"
' bash "$root" "$tree" "${#folders[@]}" "${folders[@]}" "$@"
