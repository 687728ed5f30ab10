#!/bin/sh
# Install everything that kmlab needs on Debian or Ubuntu: system packages (sudo only if some are missing), then .venv.
# Running it again changes nothing, and is quick.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

case $(uname -m) in
	x86_64) emulator=qemu-system-x86 firmware=ovmf ;;
	aarch64) emulator=qemu-system-arm firmware=qemu-efi-aarch64 ;;
	*) die "this is $(uname -m): kmlab runs on x86_64 and aarch64" ;;
esac
# Packages to build Python's libvirt binding, libvirt's QEMU driver (no daemon), QEMU, to build an image, to enter it.
run="python3 python3-venv python3-dev gcc libc6-dev make pkg-config libvirt-dev
	libvirt-daemon-driver-qemu $emulator qemu-utils $firmware
	mmdebstrap debian-archive-keyring e2fsprogs dosfstools mtools fdisk uidmap bubblewrap
	openssh-client ca-certificates gpgv"
# Only for the tests: a libvirtd for system mode, libvirt's own schema, a second reader of signatures, a publisher's key.
test="libvirt-daemon libvirt-clients libxml2-utils openssl gpg"
# For `make docs`: man pages are made of --help, and shown once.
docs="help2man liblocale-gettext-perl man-db"
packages="$run" extras=dev
case ${1:-} in
	--run-only) ;;
	--docs) packages="$run $docs" extras=dev,docs ;;
	*) packages="$run $test" ;;
esac

. /etc/os-release 2>/dev/null || ID=unknown
case " ${ID:-} ${ID_LIKE:-} " in
	*" debian "* | *" ubuntu "*) ;;
	*) die "this is ${PRETTY_NAME:-an unknown system}, but this script supports only Debian and Ubuntu.
Install what these packages hold, then: python3 -m venv .venv && .venv/bin/pip install --editable '.[dev]'
$(echo $packages)" ;;
esac

as_root=
if [ "$(id -u)" != 0 ]; then as_root=sudo; fi
need_root() {
	[ -z "$as_root" ] || command -v sudo > /dev/null || die "as root, run: $*"
	$as_root env DEBIAN_FRONTEND=noninteractive "$@"
}

missing=
for package in $packages; do
	dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed$' || missing="$missing $package"
done
if [ -n "$missing" ]; then
	say "installing$missing"
	need_root apt-get --quiet --quiet update || say "apt-get update had errors; continuing with the lists that it fetched"
	need_root apt-get --quiet --quiet --yes --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 install $missing > .setup.log 2>&1 ||
		{ tail -n 20 .setup.log >&2; die "apt-get could not install$missing (full output: .setup.log)"; }
	rm -f .setup.log
fi

if [ "$(id -u)" = 0 ]; then
	# As root libvirt's driver looks this user up even when, as here, QEMU does not run as it.
	getent passwd libvirt-qemu > /dev/null ||
		useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin --user-group libvirt-qemu
elif ! grep -q "^$(id -un):" /etc/subuid 2>/dev/null; then
	say "giving $(id -un) a range of user ids, to build images without being root"
	need_root usermod --add-subuids 100000-165535 --add-subgids 100000-165535 "$(id -un)"
fi

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "kmlab needs Python 3.10 or newer; this is $("$python" -V)"
wanted=$(cat pyproject.toml tools/setup.sh | sha256sum | cut -c1-16)
if [ ! -x .venv/bin/kmlab ] || [ "$(cat .venv/kmlab-setup 2>/dev/null)" != "$wanted" ] ||
	{ [ $extras != dev ] && [ ! -x .venv/bin/zensical ]; }; then
	say "making .venv: this compiles libvirt's binding once"
	[ -x .venv/bin/python ] || "$python" -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
	echo "$wanted" > .venv/kmlab-setup
fi
say "ready: .venv/bin/kmlab"
