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

// isPrincipalsLine reports whether line is "restrict LOGIN", with or without its
// line break, for exactly this login, where restrict may be followed by the
// options that we know, in their order.
func isPrincipalsLine(line, login string) bool {
	options, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	rest, restricted := strings.CutPrefix(options, "restrict")
	for _, o := range []string{",pty", ",port-forwarding", ",agent-forwarding"} {
		rest = strings.TrimPrefix(rest, o)
	}
	return ok && restricted && rest == "" && name == login
}
