package sshhook

import (
	"context"
	"fmt"
	"strings"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// keys answers sshd's AuthorizedKeysCommand for a user of classic mode: one line
// with the very key that sshd asked about when it is one of hers, else nothing.
// The line is printed only in the one shape that we mean, with the type and key of
// our own arguments: sshd reads options from it, and whatever an answer might hold
// besides must not get there. Nothing is printed for a sandbox's own login, which
// takes certificates only.
func (h *Hook) keys(ctx context.Context, user, keyType, key string) int {
	if _, _, ok := sandbox.ParseUserLogin(user); !ok || !isKeyWord(keyType) || !isKeyWord(key) {
		return exitRefused
	}
	ctx, cancel := h.withTimeout(ctx)
	defer cancel()
	var resp localapi.LoginKeyResponse
	req := localapi.LoginKeyRequest{User: user, KeyType: keyType, Key: key}
	if err := h.Daemon.Call(ctx, localapi.OpLoginKey, localapi.Auth{}, req, &resp); err != nil {
		return exitRefused
	}
	if !isKeyLine(resp.Line, keyType, key) {
		return exitRefused
	}
	if _, err := fmt.Fprintln(h.Stdout, resp.Line); err != nil {
		return exitRefused
	}
	return exitOK
}

// isKeyLine reports whether line is options that we know and exactly this key.
func isKeyLine(line, keyType, key string) bool {
	rest, ok := strings.CutPrefix(line, "restrict,pty")
	for _, o := range []string{",port-forwarding", ",agent-forwarding", ",verify-required"} {
		rest = strings.TrimPrefix(rest, o)
	}
	return ok && rest == " "+keyType+" "+key
}

// isKeyWord reports whether s can be a key's type or base64.
func isKeyWord(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c > '~' || c == '"' || c == '\\' || c == ',' || c == '#' {
			return false
		}
	}
	return s != "" && len(s) <= 16<<10
}
