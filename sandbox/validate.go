package sandbox

import (
	"fmt"
	"math"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Bounds of a spec. They hold on every host; what a host grants may be less.
const (
	maxImageLen   = 255
	maxPathLen    = 1024
	maxEnvEntries = 256
	maxEnvBytes   = 64 << 10
	maxLabels     = 32
	maxLabelValue = 256

	minCPUs, maxCPUs              = 0.1, 64.0
	minMemory, maxMemory   int64  = 64 << 20, 256 << 30
	minDisk, maxDisk       int64  = 64 << 20, 50 << 30
	minPIDs, maxPIDs       int64  = 16, 32768
	minTTL                        = 10 * time.Second
	maxTTL                        = 24 * time.Hour
	minIdle                       = time.Second
	maxUserID              uint64 = math.MaxInt32
	reservedLabelNamespace        = "dev.podspawn."
)

var (
	namePattern     = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	userPattern     = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	uidPattern      = regexp.MustCompile(`^(0|[1-9][0-9]{0,9})$`)
	envNamePattern  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	labelKeyPattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$`)

	// imagePattern is [HOST[:PORT]/]PATH[:TAG][@DIGEST], or a bare image id.
	imagePattern = regexp.MustCompile(`^(sha256:[0-9a-f]{64}|` +
		`([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?/)?` +
		`[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*)*` +
		`(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?)$`)
)

// Validate checks a complete spec: every string and number that a user controls
// is bounded here, before anything else looks at it. It runs in the API process
// for a quick answer and again in the daemon, which trusts nobody's check. The
// error is an *Error whose Msg begins with the field.
//
// Text must be UTF-8: JSON would replace anything else, so that two different
// specs would have the same digest.
func (s Spec) Validate() error {
	if s.Name != "" {
		if err := ValidateName(s.Name); err != nil {
			return err
		}
	}
	checks := []func() error{
		s.validateImage, s.validateEnv, s.validateUser, s.validatePaths,
		s.Resources.validate, s.Network.validate, s.SSH.validate, s.Lifecycle.validate,
	}
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// ValidateName checks the name of a sandbox. It is a DNS label, so that it also
// works as a host name, and it can't be taken for an id.
func ValidateName(name string) error {
	if !namePattern.MatchString(name) {
		return Errorf(KindInvalidSpec, "use at most 63 of a-z, 0-9 and -, beginning with a letter or digit",
			"name: %q is no sandbox name", clip(name, 70))
	}
	if loginPattern.MatchString(name) {
		return Errorf(KindInvalidSpec, "choose a name that does not look like a sandbox's login",
			"name: %q has the form of a login", name)
	}
	return nil
}

// ValidateLabels checks the labels of a sandbox. Values are shown on terminals:
// they hold no control characters.
func ValidateLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return Errorf(KindInvalidSpec, fmt.Sprintf("use at most %d labels", maxLabels),
			"labels: %d are too many", len(labels))
	}
	for _, k := range sortedKeys(labels) {
		if !labelKeyPattern.MatchString(k) {
			return Errorf(KindInvalidSpec, "use at most 63 letters, digits and . _ / - as the key, with a letter or digit at both ends",
				"labels: %q is no label key", clip(k, 70))
		}
		if strings.HasPrefix(k, reservedLabelNamespace) {
			return Errorf(KindInvalidSpec, "choose a key of your own",
				"labels: keys in %s* are reserved", reservedLabelNamespace)
		}
		if v := labels[k]; len(v) > maxLabelValue || !printable(v) {
			return Errorf(KindInvalidSpec, fmt.Sprintf("use at most %d bytes of printable text", maxLabelValue),
				"labels.%s: %q is no label value", k, clip(v, 70))
		}
	}
	return nil
}

func (s Spec) validateImage() error {
	const hint = "write it like podspawn/base or debian:bookworm"
	if s.Image == "" {
		return Errorf(KindInvalidSpec, hint, "image: missing")
	}
	if len(s.Image) > maxImageLen || !imagePattern.MatchString(s.Image) {
		return Errorf(KindInvalidSpec, hint, "image: %q is no image reference", clip(s.Image, 80))
	}
	return nil
}

func (s Spec) validateEnv() error {
	if len(s.Env) > maxEnvEntries {
		return Errorf(KindInvalidSpec, fmt.Sprintf("use at most %d variables", maxEnvEntries),
			"env: %d variables are too many", len(s.Env))
	}
	total := 0
	for _, k := range sortedKeys(s.Env) {
		v := s.Env[k]
		if total += len(k) + len(v); total > maxEnvBytes {
			return Errorf(KindInvalidSpec, "put large values into a file in the sandbox",
				"env: more than %d KiB of names and values", maxEnvBytes>>10)
		}
		if !envNamePattern.MatchString(k) {
			return Errorf(KindInvalidSpec, "use letters, digits and _, beginning with no digit",
				"env: %q is no variable name", clip(k, 70))
		}
		// The value may be a secret: it is never repeated.
		if strings.ContainsRune(v, 0) || !utf8.ValidString(v) {
			return Errorf(KindInvalidSpec, "values are UTF-8 text without NUL; encode other bytes, for example with base64",
				"env.%s: not text", clip(k, 70))
		}
	}
	return nil
}

func (s Spec) validateUser() error {
	ok := s.User == "" || userPattern.MatchString(s.User)
	if !ok && uidPattern.MatchString(s.User) {
		n, err := strconv.ParseUint(s.User, 10, 64)
		ok = err == nil && n <= maxUserID
	}
	if !ok {
		return Errorf(KindInvalidSpec, "use a user name of the image (a-z, 0-9, _ and -) or a numeric uid",
			"user: %q is neither a user name nor a uid", clip(s.User, 40))
	}
	return nil
}

func (s Spec) validatePaths() error {
	if s.Shell != "" && !cleanPath(s.Shell) {
		return Errorf(KindInvalidSpec, "use an absolute path without . and .., such as /bin/bash",
			"shell: %q is no absolute clean path", clip(s.Shell, 80))
	}
	const hint = "use an absolute path without . and .., such as /workspace"
	if !cleanPath(s.Workspace) {
		return Errorf(KindInvalidSpec, hint, "workspace: %q is no absolute clean path", clip(s.Workspace, 80))
	}
	for _, taken := range []string{"/proc", "/sys", "/dev", "/.podspawn"} {
		if s.Workspace == taken || strings.HasPrefix(s.Workspace, taken+"/") {
			return Errorf(KindInvalidSpec, hint, "workspace: %s belongs to the system", taken)
		}
	}
	return nil
}

func (r Resources) validate() error {
	// Written so that NaN fails.
	if !(r.CPUs >= minCPUs && r.CPUs <= maxCPUs) {
		return Errorf(KindInvalidSpec, fmt.Sprintf("use %g to %g", minCPUs, maxCPUs),
			"resources.cpus: %g is out of range", r.CPUs)
	}
	sizes := []struct {
		field         string
		got, min, max int64
	}{
		{"memory", r.Memory, minMemory, maxMemory},
		{"disk", r.Disk, minDisk, maxDisk},
	}
	for _, c := range sizes {
		if c.got < c.min || c.got > c.max {
			return Errorf(KindInvalidSpec, fmt.Sprintf("use %dm to %dg", c.min>>20, c.max>>30),
				"resources.%s: %d bytes are out of range", c.field, c.got)
		}
	}
	if r.PIDs < minPIDs || r.PIDs > maxPIDs {
		return Errorf(KindInvalidSpec, fmt.Sprintf("use %d to %d", minPIDs, maxPIDs),
			"resources.pids: %d is out of range", r.PIDs)
	}
	return nil
}

func (n Network) validate() error {
	switch n.Egress {
	case EgressNone, EgressPublic:
		return nil
	case "full":
		return Errorf(KindEgressDenied, "use egress: public, which reaches every public address, or none",
			"network.egress: %s is not supported yet by this version", n.Egress)
	default:
		return Errorf(KindInvalidSpec, "use egress: public or none",
			"network.egress: %q is no egress policy", clip(string(n.Egress), 40))
	}
}

func (r SSHRights) validate() error {
	if r.X11 {
		return Errorf(KindInvalidSpec, "leave it out or set it to false", "ssh.x11: not supported yet by this version")
	}
	return nil
}

func (l Lifecycle) validate() error {
	durations := []struct {
		field         string
		got, min, max time.Duration
	}{
		{"ttl", l.TTL, minTTL, maxTTL},
		{"idle_timeout", l.IdleTimeout, minIdle, maxTTL},
		{"grace", l.Grace, 0, maxTTL},
	}
	for _, c := range durations {
		if c.got < c.min || c.got > c.max {
			return Errorf(KindInvalidSpec, fmt.Sprintf("use %s to %s", c.min, c.max),
				"lifecycle.%s: %s is out of range", c.field, c.got)
		}
	}
	if l.OnExit != OnExitDestroy && l.OnExit != OnExitKeep {
		return Errorf(KindInvalidSpec, "use destroy or keep",
			"lifecycle.on_exit: %q is unknown", clip(string(l.OnExit), 40))
	}
	return nil
}

// cleanPath reports whether p is absolute, clean, not the root and shows on a
// terminal as what it is.
func cleanPath(p string) bool {
	return len(p) <= maxPathLen && path.IsAbs(p) && path.Clean(p) == p && p != "/" && printable(p)
}

// printable reports whether s is UTF-8 without control or other invisible
// characters: no escape sequence, no newline, no text that reverses direction.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys) // so that the same input always gets the same error
	return keys
}
