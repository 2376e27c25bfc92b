package ephemeralkeys

import (
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Bounds of a user's file of keys.
const (
	MaxAuthorizedKeys = 64 << 10 // bytes
	maxAuthorized     = 256      // keys
)

// AuthorizedKey is one key that a user may log in with.
type AuthorizedKey struct {
	Key ssh.PublicKey
	// VerifyRequired demands of a security key that its user was verified (a PIN),
	// and not only touched it.
	VerifyRequired bool
	Comment        string
}

// Line is the key as one line of authorized_keys form.
func (k AuthorizedKey) Line() string {
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k.Key)))
	if k.VerifyRequired {
		line = "verify-required " + line
	}
	if k.Comment != "" {
		line += " " + k.Comment
	}
	return line
}

// ParseAuthorizedKeys reads a file of keys, one a line, with "#" comments. Of
// options only verify-required is known. A line that is not understood gives no
// key and is reported by its number in bad: a key whose options (from=, expiry-time=)
// we can't keep to is better refused than let in without them.
func ParseAuthorizedKeys(text string) (keys []AuthorizedKey, bad map[int]error, err error) {
	if len(text) > MaxAuthorizedKeys {
		return nil, nil, fmt.Errorf("more than %d bytes of keys", MaxAuthorizedKeys)
	}
	bad = map[int]error{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(strings.TrimSuffix(line, "\r"))
		if line == "" || line[0] == '#' {
			continue
		}
		if len(keys) == maxAuthorized {
			return nil, nil, fmt.Errorf("more than %d keys", maxAuthorized)
		}
		k, err := parseAuthorized(line)
		if err != nil {
			bad[i+1] = err
			continue
		}
		keys = append(keys, k)
	}
	return keys, bad, nil
}

func parseAuthorized(line string) (k AuthorizedKey, err error) {
	if rest, ok := strings.CutPrefix(line, "verify-required "); ok {
		line, k.VerifyRequired = strings.TrimSpace(rest), true
	}
	if k.Key, err = ParsePublicKey(line); err != nil {
		return AuthorizedKey{}, err
	}
	if f := strings.Fields(line); len(f) > 2 {
		k.Comment = printable(strings.Join(f[2:], " "))
	}
	return k, nil
}

// printable makes a comment fit for a list: it is anybody's text.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	return s[:min(len(s), 100)]
}

// ParseKey reads what sshd hands to AuthorizedKeysCommand as %t and %k: a plain
// key, no certificate.
func ParseKey(keyType, text string) (ssh.PublicKey, error) {
	if len(text) > maxKeyLine {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrMalformed, maxKeyLine)
	}
	key, err := parseBlob(keyType, text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	return key, nil
}

// ParseAuthInfoKey is ParseAuthInfo for a login by a plain key.
func ParseAuthInfoKey(info string) (ssh.PublicKey, error) {
	name, text, err := authInfo(info)
	if err != nil {
		return nil, err
	}
	return ParseKey(name, text)
}
