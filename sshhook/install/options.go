package install

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
)

// Options say what to set up. The zero value is a host as podspawn expects it.
type Options struct {
	SSHDConfig string   // "" is DefaultConfig
	Hostnames  []string // that clients know the machine by; nil is its host name and the loopback's
	DryRun     bool     // only print what would be done
	NoReload   bool     // leave a running sshd as it is
	Purge      bool     // Uninstall: also CA keys, backups and everything under /etc/podspawn/ssh
	Out        io.Writer
	Now        time.Time // zero is the time of the call
}

func (o Options) config() string {
	if o.SSHDConfig == "" {
		return DefaultConfig
	}
	return o.SSHDConfig
}

func (o Options) now() time.Time {
	if o.Now.IsZero() {
		return time.Now()
	}
	return o.Now
}

// hostnames are what the host certificate vouches for.
func (o Options) hostnames() ([]string, error) {
	names := o.Hostnames
	if len(names) == 0 {
		h, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		names = []string{h, "localhost", "127.0.0.1", "::1"}
	}
	var out []string
	for _, n := range names { // the form in which a certificate has them, to compare with one
		n = strings.ToLower(n)
		if addr, err := netip.ParseAddr(n); err == nil {
			n = addr.String()
		}
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out, nil
}

// say prints one line of progress. A reader that went away stops nothing.
func (o Options) say(format string, args ...any) {
	if o.Out != nil {
		_, _ = fmt.Fprintf(o.Out, format+"\n", args...)
	}
}

// Result says what a call did.
type Result struct {
	// Changed reports whether anything was changed, or would be with DryRun.
	Changed bool
	// Steps are what was done, in order, in words.
	Steps []string
}
