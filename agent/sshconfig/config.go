package sshconfig

import (
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Names of the files in a sandbox's folder.
const (
	KeyFile         = "id_ed25519"
	CertificateFile = "id_ed25519-cert.pub"
	KnownHostsFile  = "known_hosts"
	ConfigFile      = "ssh_config"
)

// controlPersist is how long the shared connection outlives its last session. It
// is small because the sandbox counts the connection, not the sessions: the grace
// period begins only when it closes.
const controlPersist = 5

// maxControlDir is the longest folder that may hold the control socket: the path
// of a unix socket has 107 bytes, of which ssh needs 17 for a temporary suffix.
const maxControlDir = 107 - 17 - len("/cm")

var (
	hostPattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\.?$`)
	userPattern = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
)

// Target is where a sandbox is reached and in which folder its files are. The
// zero value is not valid.
type Target struct {
	Host string // name or address of the machine
	Port int
	User string // the sandbox's login, also the Host alias in the config
	Dir  string // absolute, or beginning with "~/", which ssh and shells expand
}

// Validate checks that every field is what it says and can't be taken for
// anything else by ssh or a shell.
func (t Target) Validate() error {
	if err := validHost(t.Host); err != nil {
		return err
	}
	if t.Port < 1 || t.Port > 65535 {
		return fmt.Errorf("port %d is out of range", t.Port)
	}
	if !userPattern.MatchString(t.User) {
		return fmt.Errorf("%q is no login name", clip(t.User))
	}
	return ValidDir(t.Dir)
}

func validHost(h string) error {
	if a, err := netip.ParseAddr(h); err == nil && a.Zone() == "" {
		return nil
	}
	if len(h) > 253 || !hostPattern.MatchString(h) {
		return fmt.Errorf("%q is no host name or address", clip(h))
	}
	return nil
}

// ValidDir checks a folder's path. Characters that ssh_config gives a meaning
// inside quotes (% and ${} expand, a quote ends) are refused rather than quoted:
// the rules changed between versions of OpenSSH.
func ValidDir(dir string) error {
	rest, tilde := strings.CutPrefix(dir, "~/")
	if tilde {
		rest = "/" + rest
	}
	switch {
	case !path.IsAbs(rest), path.Clean(rest) != rest, rest == "/":
		return fmt.Errorf("%q is no absolute clean path; it begins with / or ~/", clip(dir))
	case len(dir) > 1024:
		return fmt.Errorf("the path of the folder has %d bytes, at most 1024 are allowed", len(dir))
	case strings.ContainsAny(dir, "\"'\\%$`") || !utf8.ValidString(dir) ||
		strings.ContainsFunc(dir, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("%q has characters that can't be written to an ssh_config", clip(dir))
	}
	return nil
}

// option is one line of an ssh_config.
type option struct{ key, value string }

func (t Target) options() []option {
	opts := []option{
		{"HostName", t.Host},
		{"Port", strconv.Itoa(t.Port)},
		{"User", t.User},
		{"IdentityFile", t.file(KeyFile)},
		{"CertificateFile", t.file(CertificateFile)},
		{"IdentitiesOnly", "yes"},
		{"PreferredAuthentications", "publickey"},
		{"UserKnownHostsFile", t.file(KnownHostsFile)},
		{"GlobalKnownHostsFile", "/dev/null"},
		{"StrictHostKeyChecking", "yes"},
		{"UpdateHostKeys", "no"},
	}
	if len(t.Dir) <= maxControlDir {
		opts = append(opts,
			option{"ControlMaster", "auto"},
			option{"ControlPath", t.file("cm")},
			option{"ControlPersist", strconv.Itoa(controlPersist)})
	}
	return opts
}

func (t Target) file(name string) string { return t.Dir + "/" + name }

// Config returns a complete ssh_config for the alias t.User. The target must be
// valid.
func (t Target) Config() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Host %s\n", t.User)
	for _, o := range t.options() {
		v := o.value
		if strings.ContainsAny(v, " #=") {
			v = `"` + v + `"`
		}
		fmt.Fprintf(&b, "  %s %s\n", o.key, v)
	}
	return b.String()
}

// Command returns a complete shell command that opens a session without any
// config file. The target must be valid.
func (t Target) Command() string {
	args := []string{"ssh", "-F", "none"}
	for _, o := range t.options() {
		v := o.value
		switch o.key {
		case "HostName", "User":
			continue // the last argument says them
		case "Port":
			args = append(args, "-p", v)
			continue
		}
		if strings.ContainsAny(v, " #=") {
			v = `"` + v + `"` // -o parses a line of ssh_config
		}
		args = append(args, "-o", Quote(o.key+"="+v))
	}
	return strings.Join(append(args, t.User+"@"+t.Host), " ")
}

// ConfigCommand returns the short shell command that uses the config written to
// the folder.
func (t Target) ConfigCommand() string {
	return "ssh -F " + quotePath(t.file(ConfigFile)) + " " + t.User
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// Quote makes one word of s for a POSIX shell.
func Quote(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// quotePath is Quote, but leaves a leading ~/ to the shell.
func quotePath(p string) string {
	if rest, ok := strings.CutPrefix(p, "~/"); ok {
		return "~/" + Quote(rest)
	}
	return Quote(p)
}

func clip(s string) string {
	if len(s) > 60 {
		return s[:60] + "…"
	}
	return s
}
