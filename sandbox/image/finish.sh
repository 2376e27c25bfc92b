# The last step of the recipe: mmdebstrap runs this text with sh, on the host and
# as root, with the new root directory as $1. Nothing in here may depend on the
# host. Paths under $1 come from Debian packages alone, so following them is safe.
set -eu
root=$1

# dev is who people and agents are in the image. The password is locked; nothing
# in a sandbox asks for one.
chroot "$root" groupadd --gid 1000 dev
chroot "$root" useradd --uid 1000 --gid 1000 --create-home --home-dir /home/dev --shell /bin/bash --comment '' dev
chroot "$root" install -d -o dev -g dev -m 0755 /workspace

# Setuid means nothing under no-new-privileges, so sudo is a client of the guest,
# which the runtime mounts at this path.
install -d -m 0755 "$root/.podspawn" "$root/.podspawn/run"
ln -s /.podspawn/guest "$root/usr/local/bin/sudo"

# A default that every login shell and every plain process agrees on.
printf 'LANG=C.UTF-8\n' >"$root/etc/default/locale"

# What the build was told about the host's proxy is the host's business.
rm -f "$root/etc/apt/apt.conf.d/99mmdebstrap"

# Left empty, for the first boot to fill: two sandboxes must not look like one machine.
: >"$root/etc/machine-id"
rm -f "$root"/var/log/apt/* "$root"/var/log/*.log "$root"/var/cache/ldconfig/aux-cache
