package sshhook

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/fault"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// loginPrefix is what every sandbox login begins with, and no real user: install
// refuses a host that has one.
const loginPrefix = "sbx-"

// maxAuthInfo bounds SSH_AUTH_INFO_0: a certificate in base64, which sshd itself
// bounds to 256 KiB a packet.
const maxAuthInfo = 128 << 10

// pamSession is what pam_exec runs, as root, when sshd opens and closes the
// session of a connection. Opening is where the certificate is claimed: exit 0
// lets the connection go on, everything else ends it. Closing never fails, since
// the daemon notices the end of sshd by itself.
//
// pam_exec hands stdout on to the client, so it carries one line when the login
// is refused, and nothing otherwise.
func (h *Hook) pamSession(ctx context.Context) int {
	own := strings.HasPrefix(h.Env.PAMUser, loginPrefix)
	if _, _, ok := sandbox.ParseUserLogin(h.Env.PAMUser); !own && !ok {
		// Not ours: the line that skips real users is lost, or its module is. Root
		// must log in all the same, and sshd gives it nothing of a sandbox's.
		return exitOK
	}
	ctx, cancel := h.withTimeout(ctx)
	defer cancel()
	switch h.Env.PAMType {
	case "open_session":
		fault.At("hook.pam-session.begun")
		if err := h.pamOpen(ctx); err != nil {
			if !own && h.notOurs(err) {
				return exitOK
			}
			_, _ = fmt.Fprintln(h.Stdout, refusalLine(err)) // the exit code is the answer
			if h.EndConnection != nil {
				h.EndConnection()
			}
			return exitRefused
		}
		return exitOK
	case "close_session":
		req := localapi.PAMCloseRequest{User: h.Env.PAMUser}
		_ = h.Daemon.Call(ctx, localapi.OpPAMClose, localapi.Auth{}, req, nil) // see above
		return exitOK
	default:
		return exitRefused
	}
}

// notOurs reports whether a login with the shape of a user's is a real account's,
// who came here only because a line of PAM is lost: the daemon knows no such user,
// or does not answer, and the connection was not put into a portal. A user of ours
// who is let on like this has nothing claimed: her sessions are refused, and the
// firewall keeps her uid off the host's network.
func (h *Hook) notOurs(err error) bool {
	switch sandbox.KindOf(err) {
	case sandbox.KindNotFound:
		return true
	case sandbox.KindUnavailable:
		return h.InPortal == nil || !h.InPortal()
	default:
		return false
	}
}

// InPortal is Hook.InPortal of a real host. A namespace that can't be looked at is
// taken for a portal: then the login is refused.
func InPortal() bool {
	var first, own unix.Stat_t
	if unix.Stat("/proc/1/ns/net", &first) != nil || unix.Stat("/proc/self/ns/net", &own) != nil {
		return true
	}
	return first.Dev != own.Dev || first.Ino != own.Ino
}

func (h *Hook) pamOpen(ctx context.Context) error {
	own := strings.HasPrefix(h.Env.PAMUser, loginPrefix) // others may have come with a password
	if own && h.Env.AuthInfo == "" || len(h.Env.AuthInfo) > maxAuthInfo {
		return &localError{"sshd did not say who logs in with which certificate", "podspawn doctor on the host checks sshd's settings"}
	}
	req := localapi.PAMOpenRequest{User: h.Env.PAMUser, AuthInfo: h.Env.AuthInfo, Source: h.Env.PAMHost}
	err := h.Daemon.Call(ctx, localapi.OpPAMOpen, localapi.Auth{}, req, nil)
	fault.At("hook.pam-session.claimed")
	return err
}
