#!/bin/sh
# Install edgemt from this kit, without a network: sudo sh install.sh   (README.txt tells the rest)
# Every file of the kit is checked first; a kit that is not whole changes nothing.
set -eu
kit=$(cd "$(dirname "$0")" && pwd)
versions="@PYTHONS@"

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

command -v sha256sum >/dev/null || fail "sha256sum is not here, so the kit cannot be checked; run: sudo apt install coreutils"
[ -f "$kit/SHA256SUMS" ] || fail "SHA256SUMS is missing, nothing was changed; copy the kit again"
checked=$(cd "$kit" && LC_ALL=C sha256sum -c SHA256SUMS 2>/dev/null) || {
    bad=$(printf '%s\n' "$checked" | sed -n 's/: FAILED.*//p' | head -n 1)
    fail "${bad:-SHA256SUMS} is damaged or missing, nothing was changed; copy the kit again"
}

# The kit brings no Python: the first one here that it has packages for.
seen=
for python in python3 $(printf 'python%s ' $versions); do
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    seen=${seen:-$version}
    case " $versions " in
    *" $version "*) exec "$python" -I "$kit/install.py" "$@" ;;
    esac
done
[ -n "$seen" ] || fail "python3 is not here; it is the package python3 of the system, needed in version $versions"
fail "this kit has packages for Python $versions, and python3 here is $seen; pack another with: edgemt pack --device @DEVICE@ --python $seen"
