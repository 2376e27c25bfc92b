package sshhook

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/podspawn/podspawn/sandbox/localapi"
)

// Exit codes of the hooks. A session otherwise exits as the remote command did.
const (
	exitOK      = 0
	exitRefused = 1   // principals, keys, pam-session: sshd and PAM only look for non-zero
	exitUsage   = 2   // not a way in which sshd calls us
	exitTemp    = 75  // EX_TEMPFAIL: no session, with one line that says why
	exitLost    = 255 // the session was cut, as ssh itself says it
)

// callTimeout bounds every question to the daemon. LoginGraceTime bounds neither
// the PAM step nor the session, so a daemon that hangs would keep a refused
// connection open for ever.
const callTimeout = 5 * time.Second

// Hook is one run of podspawn-hook. Stdin, Stdout and Stderr are what sshd or PAM
// gave the process. The zero value of the other fields is a hook as it is
// installed. Not safe for concurrent use: Run once.
type Hook struct {
	Daemon                *localapi.Client
	Env                   Env
	Stdin, Stdout, Stderr *os.File
	// EndConnection ends the connection whose PAM session is refused; see
	// [EndParent]. nil does nothing.
	EndConnection func()
	// InPortal reports whether the process is in another network namespace than the
	// machine's first process: pam_usernet has put it there. nil is no.
	InPortal func() bool
	// Timeout is for tests; 0 is callTimeout.
	Timeout time.Duration
}

// Run runs what argv, the process's whole argument vector, asks for and returns
// the exit code. A session whose remote command died by a signal does not
// return: the process dies by the same one.
func (h *Hook) Run(ctx context.Context, argv []string) int {
	if len(argv) == 0 {
		return h.usage()
	}
	if strings.HasPrefix(argv[0], "-") { // a login shell's name
		return h.session(ctx)
	}
	if len(argv) == 1 {
		return h.usage()
	}
	switch args := argv[2:]; argv[1] {
	case "-c", "session":
		return h.session(ctx)
	case "principals":
		if len(args) != 3 {
			return h.usage()
		}
		return h.principals(ctx, args[0], args[1], args[2])
	case "keys":
		if len(args) != 3 {
			return h.usage()
		}
		return h.keys(ctx, args[0], args[1], args[2])
	case "pam-session":
		return h.pamSession(ctx)
	case "relay":
		return h.relay(ctx)
	case endCommand:
		return endConnection()
	default:
		return h.usage()
	}
}

func (h *Hook) usage() int {
	h.complain("podspawn: error: sshd and PAM run this program; use podspawn ssh to reach a sandbox")
	return exitUsage
}

// withTimeout bounds one question to the daemon.
func (h *Hook) withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	d := h.Timeout
	if d == 0 {
		d = callTimeout
	}
	return context.WithTimeout(ctx, d)
}

// complain writes one line for people. That it can't be written changes nothing:
// the exit code is the answer.
func (h *Hook) complain(line string) { _, _ = fmt.Fprintln(h.Stderr, line) }
