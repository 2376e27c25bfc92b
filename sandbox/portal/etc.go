package portal

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// nsswitch is the host's, whose other databases a portal keeps.
const nsswitch = "/etc/nsswitch.conf"

// writeEtc makes the folder without which pam_usernet aborts the login, and the
// files in it, which it puts over those in /etc for the sandbox's sshd. With the
// host's, names that a client forwards to would be asked of the host's resolver,
// which sees more than the sandbox may: by its address, which does not lead there
// from a portal, or by a unix socket (nss-resolve), which does.
func (h *Host) writeEtc(login string) error {
	dir := filepath.Join(h.c.EtcNetNS, login)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	nss, err := readLines(nsswitch)
	if err != nil {
		return err
	}
	nss = slices.DeleteFunc(nss, func(l string) bool {
		db, _, _ := strings.Cut(l, ":")
		return strings.TrimSpace(db) == "hosts"
	})
	for name, lines := range map[string][]string{
		"hosts":         {"127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"},
		"resolv.conf":   {"nameserver 127.0.0.1", "options timeout:2 attempts:1"},
		"nsswitch.conf": append(nss, "hosts: files dns"),
	} {
		// Not atomic: nobody can log in yet.
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}
