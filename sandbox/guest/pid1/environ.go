package pid1

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	maxEnv      = 1024 // variables of one process
)

// environ returns what a process of a starts with: a minimal base, then each
// layer over it. A name that a shell could not set is refused, not passed on.
func environ(a account, shell, home, term string, layers ...map[string]string) ([]string, error) {
	env := map[string]string{
		"HOME":    home,
		"USER":    a.name,
		"LOGNAME": a.name,
		"SHELL":   shell,
		"PATH":    defaultPath,
	}
	if term != "" {
		env["TERM"] = term
	}
	for _, layer := range layers {
		for name, value := range layer {
			if !validName(name) {
				return nil, fmt.Errorf("environment: %q is not a variable's name", clip(name))
			}
			if strings.IndexByte(value, 0) >= 0 {
				return nil, fmt.Errorf("environment: %s contains a zero byte", clip(name))
			}
			env[name] = value
		}
	}
	if len(env) > maxEnv {
		return nil, fmt.Errorf("environment: %d variables, at most %d", len(env), maxEnv)
	}
	list := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list, nil
}

// validName reports whether s has the form [A-Za-z_][A-Za-z0-9_]* and a sane length.
func validName(s string) bool {
	if s == "" || len(s) > 256 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// validTerm returns the terminal's type, or "dumb" for what can't be one: it
// becomes part of a file name in the terminfo database.
func validTerm(s string) string {
	if s == "" || len(s) > 64 {
		return "dumb"
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || i > 0 && strings.IndexByte("-+._", c) >= 0) {
			return "dumb"
		}
	}
	return s
}

// getenv returns the value of a variable in a list of name=value.
func getenv(env []string, name string) string {
	for _, kv := range env {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value
		}
	}
	return ""
}
