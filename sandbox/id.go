package sandbox

import (
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"regexp"
	"strings"
)

// ID names a sandbox for ever: "sbx_" and 16 lower-case Crockford characters
// (80 random bits), so it cannot be guessed and is never handed out twice.
type ID string

// crockford is Douglas Crockford's base 32 alphabet in lower case: no i, l, o, u.
var crockford = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

var (
	idPattern    = regexp.MustCompile(`^sbx_[0-9a-hjkmnp-tv-z]{16}$`)
	loginPattern = regexp.MustCompile(`^sbx-[0-9a-hjkmnp-tv-z]{16}$`)
)

// NewID returns a fresh random ID.
func NewID() ID {
	return ID("sbx_" + randomToken())
}

// randomToken returns 16 Crockford characters from crypto/rand, which never fails.
func randomToken() string {
	var b [10]byte
	rand.Read(b[:])
	return crockford.EncodeToString(b[:])
}

// NewToken returns prefix and 16 random Crockford characters: the form of every
// identifier that we hand out (connections, execs, API tokens).
func NewToken(prefix string) string { return prefix + randomToken() }

// ParseID accepts exactly the form that NewID makes.
func ParseID(s string) (ID, error) {
	if !idPattern.MatchString(s) {
		return "", fmt.Errorf("%q is no sandbox id", clip(s, 40))
	}
	return ID(s), nil
}

// Login returns the host login name of the sandbox: the id with "sbx-" for
// "sbx_", since an underscore is legal in a login but unusual in a host name.
func (id ID) Login() string { return "sbx-" + strings.TrimPrefix(string(id), "sbx_") }

// ParseLogin returns the ID whose Login is s.
func ParseLogin(s string) (ID, error) {
	if !loginPattern.MatchString(s) {
		return "", fmt.Errorf("%q is no sandbox login", clip(s, 40))
	}
	return ID("sbx_" + strings.TrimPrefix(s, "sbx-")), nil
}

// clip bounds what an error repeats of foreign input.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}
