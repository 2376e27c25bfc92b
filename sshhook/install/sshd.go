package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

// sshd asks the host's own server what a configuration means. It never starts one.
type sshd struct {
	path   string // absolute, since sshd re-executes itself by it
	config string
}

// sshdTimeout bounds one question.
const sshdTimeout = 20 * time.Second

func findSSHD() (string, error) {
	for _, p := range []string{"/usr/sbin/sshd", "/usr/local/sbin/sshd", "/sbin/sshd"} {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", refuse("there is no sshd on this machine", "apt-get install openssh-server")
}

// settings are what "sshd -T" prints: lower-case keyword, values in order.
type settings map[string][]string

// one returns the only value of a keyword, "" when there is none.
func (s settings) one(key string) string { return strings.Join(s[strings.ToLower(key)], " ") }

// check is "sshd -t".
func (s sshd) check(ctx context.Context) error {
	_, err := s.run(ctx, s.path, "-t", "-f", s.config)
	return err
}

// settings returns what sshd would do for everybody.
func (s sshd) settings(ctx context.Context) (settings, error) {
	out, err := s.run(ctx, s.path, "-T", "-f", s.config)
	return parseSettings(out), err
}

// settingsFor returns what sshd would do for one user.
func (s sshd) settingsFor(ctx context.Context, user string) (settings, error) {
	out, err := s.run(ctx, s.path, "-T", "-f", s.config, "-C", connection(user))
	return parseSettings(out), err
}

// settingsForSandbox returns what sshd would do for a sandbox login. A Match
// Group needs a login that exists, so sshd is asked in a mount namespace of its
// own, in which the database of sandbox logins holds one, and where a cache can't
// say that it does not.
func (s sshd) settingsForSandbox(ctx context.Context) (settings, error) {
	dir, err := os.MkdirTemp("", "podspawn-probe")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // ours and empty of secrets
	entry := fmt.Sprintf("%s:x:%d:%d::/var/lib/podspawn/home:%s\n", probeLogin, sandbox.MaxUID, sandbox.LoginGID, HookPath)
	err = errors.Join(
		os.Chmod(dir, 0o755),
		os.WriteFile(filepath.Join(dir, "passwd"), []byte(entry), 0o644),
		os.WriteFile(filepath.Join(dir, "group"), []byte(groupLines()), 0o644),
		os.WriteFile(filepath.Join(dir, "shadow"), []byte(probeLogin+":*:::::::\n"), 0o600),
	)
	if err != nil {
		return nil, err
	}
	const script = `mount --bind "$1" ` + extraDir + ` && { [ ! -d /run/nscd ] || mount -t tmpfs none /run/nscd; } && exec "$2" -T -f "$3" -C "$4"`
	out, err := s.run(ctx, "/bin/sh", "-c", script, "sh", dir, s.path, s.config, connection(probeLogin))
	return parseSettings(out), err
}

func connection(user string) string {
	return "user=" + user + ",host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22"
}

func (s sshd) run(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, sshdTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if name != s.path { // a probe changes mounts, in a namespace that ends with it
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	}
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("sshd does not accept its configuration: %s: %w", firstLine(words.String()), err)
	}
	return out.String(), nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return strings.TrimSpace(line)
}

func parseSettings(out string) settings {
	s := settings{}
	for l := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(l), " ")
		if key != "" {
			s[key] = append(s[key], value)
		}
	}
	return s
}

// wrong compares what sshd would do for a sandbox login with our Match block and
// describes the first difference; "" is none.
func (s settings) wrong() string {
	for _, want := range matchSettings() {
		got := s.one(want.key)
		if got == "" && want.value == "no" {
			continue // this sshd was built without it (GSSAPI)
		}
		if !slices.Equal(strings.Fields(strings.ToLower(got)), strings.Fields(strings.ToLower(want.value))) {
			return fmt.Sprintf("%s is %q for sandbox logins, not %q", want.key, got, want.value)
		}
	}
	return ""
}

// checkGlobal refuses what a Match block can't cure.
func (s settings) checkGlobal() error {
	switch {
	case s.one("usepam") != "yes":
		return refuse("sshd_config has UsePAM no", "set UsePAM yes: the certificate is claimed in a PAM step")
	case s.one("permituserenvironment") != "no":
		return refuse("sshd_config has PermitUserEnvironment "+s.one("permituserenvironment"), "set PermitUserEnvironment no: a Match block can't turn it off for sandbox logins")
	case s.one("logingracetime") == "0":
		return refuse("sshd_config has LoginGraceTime 0", "set LoginGraceTime to 30 or so: connections that never authenticate would stay for ever")
	}
	return nil
}

// checkRoot refuses a CA for root: a certificate that names root would be root.
func (s settings) checkRoot() error {
	if ca := s.one("trustedusercakeys"); ca != "none" {
		return refuse("sshd trusts the CA in "+ca+" for root", "move TrustedUserCAKeys into a Match block for the users that need it: whoever has that CA is root")
	}
	if k := s.one("authorizedprincipalscommand"); k != "none" && strings.Contains(k, HookPath) {
		return refuse("sshd runs podspawn's hook for root", "remove the line from sshd_config")
	}
	return nil
}

// checkDenied refuses lists that would deny sandbox logins.
func (s settings) checkDenied() error {
	for _, list := range []struct {
		key   string
		names []string
	}{{"DenyUsers", loginSets()}, {"DenyGroups", literalSets(groupName)}} {
		for _, v := range s[strings.ToLower(list.key)] {
			for _, pattern := range strings.Fields(v) {
				name, _, _ := strings.Cut(pattern, "@")
				if mayMatch(name, list.names) {
					return refuse(fmt.Sprintf("%s %s in sshd_config matches sandbox logins", list.key, pattern), "narrow that pattern, so that it does not match "+sandboxPattern)
				}
			}
		}
	}
	return nil
}
