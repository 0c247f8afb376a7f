#!/bin/sh
# Boots Debian's cloud kernel under emulation and runs Hosier in it.
#
#   tests/qemu/run.sh BINARIES     the directory with `hosier` and `libhosier_native.so`
#   tests/qemu/run.sh --kernel     only look at what the kernel can do
#
#   this script ── packages ──> target/qemu/cache/    kernel and busybox, unpacked, never installed
#              └── image ─────> target/qemu/root.img  ext4: busybox, the host's Python, Hosier
#              └── qemu: kernel ─> /init ─> guest.py ─> lines on the serial console
#
# stdout is the guest's console: `SMOKE ok NAME …`, `SMOKE fail NAME …`, at the end `SMOKE done`.
# Exit 0: the guest ran (read its lines). 77: this machine cannot run it, the last line of stderr
# says why. Anything else: broken.
#
# The kernel has ext4 and NVMe built in, so it mounts the image as its root without an initramfs:
# pivot_root refuses to leave an initramfs, and no user's machine runs on one.

set -eu

here=$(cd "$(dirname "$0")" && pwd)
work=${HOSIER_QEMU_DIR:-$here/../../target/qemu}
accel=${HOSIER_QEMU_ACCEL:-tcg,thread=multi}
limit_s=${HOSIER_QEMU_LIMIT_S:-400}

say() { echo "qemu smoke: $*" >&2; }
skip() { say "skipped: $*"; exit 77; }
die() { say "$*"; exit 1; }

# --- what the machine must have ------------------------------------------------------------------

tools() {
    [ "$(uname -m)" = x86_64 ] || skip "the guest is x86_64, this machine is $(uname -m)"
    for tool in apt-get apt-cache dpkg-deb; do
        command -v "$tool" >/dev/null || skip "no $tool: the kernel is a Debian package"
    done
    for tool in mkfs.ext4 ldd strip timeout flock; do
        command -v "$tool" >/dev/null || skip "no $tool"
    done
    [ -x /usr/bin/python3 ] || skip "no /usr/bin/python3 to put into the guest"
    command -v qemu-system-x86_64 >/dev/null && return
    [ "$(id -u)" = 0 ] || skip "no qemu-system-x86_64 (apt-get install qemu-system-x86)"
    say "installing qemu-system-x86"
    refresh
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends qemu-system-x86 >"$work/apt.log" 2>&1 ||
        skip "qemu-system-x86 could not be installed, see $work/apt.log"
}

# Only once: lists as fresh as today's are fresh enough.
refresh() {
    [ -z "${refreshed:-}" ] || return 0
    refreshed=yes
    apt-get update -qq >"$work/apt.log" 2>&1 || say "apt-get update failed, going on with the lists at hand"
}

# --- kernel and busybox --------------------------------------------------------------------------

# Kept until the directory is removed: the smoke does not change with every security update.
packages() {
    cache=$work/cache
    [ ! -e "$cache/complete" ] || return 0
    rm -rf "$cache" && mkdir -p "$cache/debs"
    kernel_package || refresh
    kernel_package || skip "apt knows no linux-image-cloud-amd64 (it is Debian's)"
    # The lists may name versions that have left the archive: then renew them, once.
    fetch "$package" busybox-static || { refresh; fetch "$package" busybox-static; } ||
        skip "$package and busybox-static could not be downloaded, see $work/download.log"
    for deb in "$cache"/debs/*.deb; do dpkg-deb -x "$deb" "$cache"; done
    rm -r "$cache/debs"
    touch "$cache/complete"
}

# The meta package names the real one.
kernel_package() {
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p')
    [ -n "$package" ]
}

fetch() { (cd "$cache/debs" && apt-get download -q "$@") >"$work/download.log" 2>&1; }

# --- the image -----------------------------------------------------------------------------------

image() {
    root=$work/root
    rm -rf "$root" && mkdir -p "$root"
    (
        cd "$root"
        mkdir -p dev proc sys run tmp root etc/ssl/certs var/tmp smoke \
            usr/bin usr/sbin usr/lib/x86_64-linux-gnu usr/lib64 usr/local/bin
        ln -s usr/bin bin && ln -s usr/sbin sbin && ln -s usr/lib lib && ln -s usr/lib64 lib64
        chmod 1777 tmp var/tmp
        printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >etc/passwd
        printf 'root:x:0:\nnogroup:x:65534:\n' >etc/group
        printf '127.0.0.1 localhost\n' >etc/hosts
        printf 'NAME="smoke"\nID=debian\n' >etc/os-release
    )
    cp "$(find "$cache/bin" "$cache/usr/bin" -name busybox 2>/dev/null | head -1)" "$root/bin/busybox"
    for applet in sh cat ls ps mount umount dmesg sleep kill; do ln -s busybox "$root/bin/$applet"; done
    find "$cache" -name overlay.ko -exec cp {} "$root/smoke/" \;

    python "$root"
    cp -r "$here/guest.py" "$here/functions" "$root/smoke/"
    install -m 755 "$here/init" "$root/init"
    if [ -n "$binaries" ]; then
        # Debug information would only make the emulated disk slower.
        strip -o "$root/usr/local/bin/hosier" "$binaries/hosier"
        strip --strip-unneeded -o "$root/usr/local/bin/libhosier_native.so" "$binaries/libhosier_native.so"
        libraries "$root" "$binaries/hosier" "$binaries/libhosier_native.so"
    fi
    ldconfig -r "$root" 2>/dev/null || /sbin/ldconfig -r "$root"

    rm -f "$work/root.img"
    mkfs.ext4 -q -F -O ^has_journal -E root_owner=0:0 -d "$root" "$work/root.img" 512M >"$work/mkfs.log" 2>&1 ||
        die "no image, see $work/mkfs.log"
    rm -rf "$root"
}

# The interpreter, its library with bytecode (so times are kept: a .pyc knows its source's), and what they link.
python() {
    real=$(readlink -f /usr/bin/python3)
    stdlib=$(/usr/bin/python3 -I -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
    cp "$real" "$1$real"
    ln -s "$(basename "$real")" "$1/usr/bin/python3"
    mkdir -p "$1$stdlib"
    (cd "$stdlib" && tar -cf - --exclude='./config-*' --exclude=./test --exclude=./idlelib --exclude=./lib2to3 \
        --exclude=./ensurepip --exclude=./pydoc_data --exclude=./tkinter --exclude=./turtledemo .) | tar -xf - -C "$1$stdlib"
    # libgcc_s: loaded at run time, when a thread ends.
    libraries "$1" "$real" "$stdlib"/lib-dynload/*.so "$(ldconfig_path libgcc_s.so.1)"
}

ldconfig_path() { find /usr/lib/x86_64-linux-gnu /lib/x86_64-linux-gnu -name "$1" | head -1; }

# Every library that the files link, and the files that are libraries themselves, at the same paths.
libraries() {
    into=$1
    shift
    {
        ldd "$@" 2>/dev/null | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p; s/^[[:space:]]*\(\/[^ :]*\) (.*/\1/p'
        for file in "$@"; do case $file in */libgcc_s*) echo "$file" ;; esac; done
    } | sort -u | while read -r library; do
        [ -e "$into$library" ] || { mkdir -p "$into$(dirname "$library")" && cp -L "$library" "$into$library"; }
    done
}

# --- the machine ---------------------------------------------------------------------------------

boot() {
    # quiet: the console carries the results; loglevel=1: and the kernel's last words.
    # panic=-1 with -no-reboot: a panic ends the emulator. nokaslr, mitigations=off: seconds less.
    timeout "$limit_s" qemu-system-x86_64 -machine q35 -accel "$accel" -cpu max -smp 2 -m 1024 \
        -nodefaults -no-user-config -display none -no-reboot -serial stdio -monitor none \
        -kernel "$(echo "$cache"/boot/vmlinuz-*)" \
        -append "console=ttyS0 root=/dev/nvme0n1 rootfstype=ext4 rw init=/init quiet loglevel=1 panic=-1 nokaslr mitigations=off" \
        -drive file="$work/root.img",if=none,id=root,format=raw,cache=unsafe -device nvme,serial=root,drive=root \
        </dev/null | tr -d '\r' | tee "$work/console.log"
}

[ $# = 1 ] || die "usage: $0 BINARIES | --kernel"
binaries=
if [ "$1" != --kernel ]; then
    binaries=$(cd "$1" && pwd)
    for file in hosier libhosier_native.so; do
        [ -e "$binaries/$file" ] || die "no $file in $binaries: cargo build makes it"
    done
fi
mkdir -p "$work"
work=$(cd "$work" && pwd)
exec 9>"$work/lock" && flock 9 # two runs would write one image
tools
packages
image
boot
grep -q '^SMOKE done' "$work/console.log" || die "the guest did not finish, see $work/console.log"
