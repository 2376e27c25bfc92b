package sshhook

import (
	"context"
	"fmt"
	"strings"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/fault"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// principals answers sshd's AuthorizedPrincipalsCommand: one line when the
// daemon knows a reason to let this certificate in, else nothing. sshd reads
// options from the line, so it is printed only when it has the one shape that we
// mean; a line break in a key id that was echoed here once gave a host shell.
// The reason for a refusal is in the audit log, not here: sshd tells it nobody.
func (h *Hook) principals(ctx context.Context, user, keyType, key string) int {
	fault.At("hook.principals.begun")
	if _, err := sandbox.ParseLogin(user); err != nil {
		return exitRefused
	}
	ctx, cancel := h.withTimeout(ctx)
	defer cancel()
	var resp localapi.PrincipalsResponse
	req := localapi.PrincipalsRequest{User: user, KeyType: keyType, Key: key}
	if err := h.Daemon.Call(ctx, localapi.OpPrincipals, localapi.Auth{}, req, &resp); err != nil {
		return exitRefused
	}
	if !isPrincipalsLine(resp.Line, user) {
		return exitRefused
	}
	if _, err := fmt.Fprintln(h.Stdout, strings.TrimSuffix(resp.Line, "\n")); err != nil {
		return exitRefused
	}
	return exitOK
}

// isPrincipalsLine reports whether line is "restrict LOGIN" or "restrict,pty
// LOGIN", with or without its line break, for exactly this login.
func isPrincipalsLine(line, login string) bool {
	options, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	return ok && (options == "restrict" || options == "restrict,pty") && name == login
}
