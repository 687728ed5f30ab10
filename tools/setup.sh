#!/bin/sh
# Install everything that kmlab needs: system packages (sudo only if some are missing), then .venv. Running it again changes
# nothing, and is quick. kmlab/host/process/packages.tsv has the packages of Debian, Ubuntu, Fedora, Arch and openSUSE.
#   --run-only  without what only the tests need      --docs  with what `make docs` needs      --packages  no .venv
set -eu
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

arch=$(uname -m)
case $arch in
	x86_64 | aarch64) ;;
	*) die "this is $arch: kmlab runs on x86_64 and aarch64" ;;
esac
uses="run test" extras=dev venv=yes
for option in "$@"; do
	case $option in
		--run-only) uses=run ;;
		--docs) uses="run docs" extras=dev,docs ;;
		--packages) venv= ;;
		*) die "unknown option $option: --run-only, --docs or --packages" ;;
	esac
done

. "${KMLAB_OS_RELEASE:-/etc/os-release}" 2>/dev/null || ID=unknown
manager=
for word in ${ID:-} ${ID_LIKE:-}; do
	case $word in
		debian | ubuntu) manager=apt-get ;;
		fedora | rhel | centos) manager=dnf ;;
		arch) manager=pacman ;;
		suse | opensuse*) manager=zypper ;;
	esac
	[ -z "$manager" ] || break
done

# The packages of a column of the table, for these uses and this machine.
listed() {
	awk -F '\t' -v uses=" $uses " -v arch="$arch" -v column="$1" '
		/^# use/ { for (i = 1; i <= NF; i++) if ($i == column) at = i }
		/^#/ || at == 0 { next }
		index(uses, " " $1 " ") && ($2 == "any" || $2 == arch) && $at != "-" && !seen[$at]++ { print $at }
	' kmlab/host/process/packages.tsv
}
[ -n "$manager" ] || die "this is ${PRETTY_NAME:-an unknown system}: this script knows Debian, Ubuntu, Fedora, Arch and openSUSE.
Install what these packages of Debian hold, then: python3 -m venv .venv && .venv/bin/pip install --editable '.[dev]'
$(listed apt-get | tr '\n' ' ')"

is_installed() {
	case $manager in
		apt-get) dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null | grep -q '^installed$' ;;
		pacman) pacman --query "$1" > /dev/null 2>&1 ;;
		*) rpm --query --whatprovides "$1" > /dev/null 2>&1 ;;
	esac
}

as_root=
if [ "$(id -u)" != 0 ]; then as_root=sudo; fi
require_root() { [ -z "$as_root" ] || command -v sudo > /dev/null || die "there is no sudo: as root, run: $*"; }
need_root() { $as_root env DEBIAN_FRONTEND=noninteractive "$@"; }

install_packages() {
	case $manager in
		apt-get)
			need_root apt-get --quiet --quiet update || say "apt-get update had errors; continuing with the lists that it fetched"
			need_root apt-get --quiet --quiet --yes --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 install "$@"
			;;
		dnf) need_root dnf install --assumeyes --setopt=install_weak_deps=False "$@" ;;
		pacman) need_root pacman --sync --needed --noconfirm "$@" ;;
		zypper) need_root zypper --non-interactive install --no-recommends "$@" ;;
	esac > .setup.log 2>&1 || { tail -n 20 .setup.log >&2; die "$manager could not install $* (full output: .setup.log)"; }
	rm -f .setup.log
}

missing=
for package in $(listed "$manager"); do is_installed "$package" || missing="$missing $package"; done
if [ -n "$missing" ]; then
	case $manager in pacman) require_root "pacman --sync$missing" ;; *) require_root "$manager install$missing" ;; esac
	say "installing$missing"
	install_packages $missing
fi
for program in mmdebstrap apt-get; do
	command -v $program > /dev/null ||
		say "this distribution has no package with $program, so kmlab cannot build images here: see docs/hosts.md"
done

if [ "$(id -u)" = 0 ] && [ $manager = apt-get ]; then
	# As root libvirt's driver looks this user up even when, as here, QEMU does not run as it.
	getent passwd libvirt-qemu > /dev/null ||
		useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin --user-group libvirt-qemu
elif [ "$(id -u)" != 0 ] && ! grep -q "^$(id -un):" /etc/subuid 2>/dev/null; then
	say "giving $(id -un) a range of user ids, to build images without being root"
	require_root usermod --add-subuids 100000-165535 --add-subgids 100000-165535 "$(id -un)"
	need_root usermod --add-subuids 100000-165535 --add-subgids 100000-165535 "$(id -un)"
fi

[ -n "$venv" ] || exit 0
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "kmlab needs Python 3.10 or newer; this is $("$python" -V)"
wanted=$(cat pyproject.toml tools/setup.sh kmlab/host/process/packages.tsv | sha256sum | cut -c1-16)
if [ ! -x .venv/bin/kmlab ] || [ "$(cat .venv/kmlab-setup 2>/dev/null)" != "$wanted" ] ||
	{ [ $extras != dev ] && [ ! -x .venv/bin/zensical ]; }; then
	say "making .venv: this compiles libvirt's binding once"
	[ -x .venv/bin/python ] || "$python" -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
	echo "$wanted" > .venv/kmlab-setup
fi
say "ready: .venv/bin/kmlab"
