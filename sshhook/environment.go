package sshhook

import "strings"

// Env is the part of the process's environment that a hook looks at. Everything
// else is dropped before anything runs: sshd_config may let a client set
// variables (AcceptEnv), and a hook starts nothing and needs none of them.
type Env struct {
	Command    string // SSH_ORIGINAL_COMMAND
	HasCommand bool   // it is set, be it to ""
	Term       string // TERM, "" when its shape is odd
	Locale     map[string]string
	Agent      string // SSH_AUTH_SOCK: sshd's end of the client's agent

	// What pam_exec(8) says. PAMType is "open_session" or "close_session".
	PAMType, PAMUser, PAMHost, AuthInfo string
}

// localeNames are those of locale(7); LC_ANYTHING is accepted by Debian's
// sshd_config and means nothing.
var localeNames = map[string]bool{
	"LANG": true, "LC_ALL": true, "LC_COLLATE": true, "LC_CTYPE": true, "LC_MESSAGES": true,
	"LC_MONETARY": true, "LC_NUMERIC": true, "LC_TIME": true,
}

// maxWord bounds TERM and locale values.
const maxWord = 64

// ParseEnv picks the known variables out of environ (name=value). The first of
// two with one name counts, as for getenv(3).
func ParseEnv(environ []string) Env {
	var e Env
	seen := map[string]bool{}
	for _, kv := range environ {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || seen[name] {
			continue
		}
		seen[name] = true
		switch name {
		case "SSH_ORIGINAL_COMMAND":
			e.Command, e.HasCommand = value, true
		case "TERM":
			if isWord(value) {
				e.Term = value
			}
		case "SSH_AUTH_SOCK":
			e.Agent = value
		case "PAM_TYPE":
			e.PAMType = value
		case "PAM_USER":
			e.PAMUser = value
		case "PAM_RHOST":
			e.PAMHost = value
		case "SSH_AUTH_INFO_0":
			e.AuthInfo = value
		default:
			if localeNames[name] && isWord(value) {
				if e.Locale == nil {
					e.Locale = map[string]string{}
				}
				e.Locale[name] = value
			}
		}
	}
	return e
}

// isWord reports whether s has the shape of a terminal's or locale's name:
// "xterm-256color", "de_DE.UTF-8@euro". It may end up in a shell's hands inside.
func isWord(s string) bool {
	if s == "" || len(s) > maxWord {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && strings.IndexByte("._@+-", c) >= 0:
		default:
			return false
		}
	}
	return true
}
