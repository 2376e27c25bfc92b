package install

import (
	"path/filepath"
)

// Where things are. They are fixed: sshd, PAM and the daemon must agree on them.
const (
	HookPath      = "/usr/libexec/podspawn/podspawn-hook"
	DefaultConfig = "/etc/ssh/sshd_config"
	ManifestPath  = "/var/lib/podspawn/setup.json"

	UserCAKey = "/var/lib/podspawn/keys/user_ca"
	HostCAKey = "/var/lib/podspawn/keys/host_ca"

	userCAPub   = "/etc/podspawn/ssh/user_ca.pub"
	hostCAPub   = "/etc/podspawn/ssh/host_ca.pub"
	revokedKRL  = "/etc/podspawn/ssh/revoked.krl"
	hostCert    = "/etc/podspawn/ssh/ssh_host_ed25519_key-cert.pub"
	backupDir   = "/var/lib/podspawn/backup"
	lockPath    = "/run/podspawn-setup.lock"
	pamPath     = "/etc/pam.d/sshd"
	nssPath     = "/etc/nsswitch.conf"
	extraDir    = "/var/lib/extrausers"
	extraGroup  = "/var/lib/extrausers/group"
	extraPasswd = "/var/lib/extrausers/passwd"
	extraShadow = "/var/lib/extrausers/shadow"
	privsepDir  = "/run/sshd"

	authUser   = "podspawn-auth"
	apiUser    = "podspawn-api"
	dnsUser    = "podspawn-dns"
	groupName  = "podspawn"
	relayGroup = "podspawn-relay"
)

// dir is a directory that set-up makes.
type dir struct {
	path string
	mode uint32
	ours bool // removed by Uninstall when empty
}

// dirs in the order in which they are made.
var dirs = [...]dir{
	{"/etc/podspawn", 0o755, true},
	{"/etc/podspawn/ssh", 0o755, true},
	{"/etc/podspawn/keys", 0o755, true},
	{"/var/lib/podspawn", 0o711, true},
	{"/var/lib/podspawn/keys", 0o700, true},
	{"/var/lib/podspawn/home", 0o755, true},
	{backupDir, 0o700, true},
	{"/run/podspawn", 0o755, true},
	{"/run/podspawn/guests", 0o700, true},
	{"/var/log/podspawn", 0o750, true},
	{extraDir, 0o755, false},
	{"/etc/netns", 0o755, false},
	{privsepDir, 0o755, false},
}

// dropInPath is where sshd's drop-in goes for a main configuration.
func dropInPath(config string) string {
	return filepath.Join(filepath.Dir(config), "sshd_config.d", "00-podspawn.conf")
}
