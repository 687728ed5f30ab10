#!/bin/sh
# Makes the samples of this folder again: needs make, gcc-12 (DWARF 4 and 5), linux-headers-cloud-amd64 of Debian 12
# and gcc-aarch64-linux-gnu. No path of the building machine gets into them but /usr/src, where Debian has its headers.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
release=${1:-$(ls /lib/modules | tail -n 1)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

build() { # DWARF-VERSION OUTPUT
	rm -rf "$work/frames"
	cp -r "$here/frames" "$work/frames"
	set -- "$1" "$2" make -C "/lib/modules/$release/build" M="$work/frames" -s modules
	version=$1 output=$2
	shift 2
	"$@" KCFLAGS="-gdwarf-$version -ffile-prefix-map=$work=/module"
	# The unit that kbuild generates doubles the size and has no code.
	objcopy --strip-debug "$work/frames/frames.mod.o"
	"$@" KCFLAGS="-gdwarf-$version -ffile-prefix-map=$work=/module"
	cp "$work/frames/frames.ko" "$here/$output"
}

build 5 frames.ko
build 4 frames-dwarf4.ko
objcopy --compress-debug-sections=zlib "$here/frames.ko" "$here/frames-compressed.ko"
objcopy --strip-debug "$here/frames.ko" "$here/frames-stripped.ko"
cd "$here/arm64"
aarch64-linux-gnu-gcc -O2 -g -ffreestanding -fno-pic -ffile-prefix-map="$here=/module" \
	-c sample.c -o "$here/arm64.ko"

# For the bytes of its code alone.
cp -r "$here/../../../examples/irq_off_loop" "$work/"
make -C "/lib/modules/$release/build" M="$work/irq_off_loop" -s modules
strip -g -o "$here/irq_off_loop.ko" "$work/irq_off_loop/irq_off_loop.ko"

cd "$here/ownheader"
gcc -O2 -g -ffreestanding -fno-pic -mcmodel=kernel -fcf-protection=none \
	-ffile-prefix-map="$here/ownheader=/var/lib/kmlab/modules/ownheader" -c main.c -o "$here/ownheader.ko"
