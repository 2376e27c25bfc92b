package sshhook

import (
	"errors"
	"strings"
	"unicode"

	"github.com/podspawn/podspawn/sandbox"
)

// maxLine bounds a line for people, in bytes.
const maxLine = 500

// refusalLine is the one line that a refused login sees over SSH: what was
// refused and what to do. It comes from the daemon, but parts of it may come
// from users, so control characters (terminal escapes, line breaks) are dropped.
func refusalLine(err error) string {
	e := sandbox.Public(err)
	if le, ok := errors.AsType[*localError](err); ok {
		e = &sandbox.Error{Msg: le.msg, Hint: le.hint}
	}
	line := "podspawn: error: " + e.Msg
	if e.Hint != "" {
		line += "; " + e.Hint
	}
	return oneLine(line)
}

// localError is a refusal that the hook itself decides on.
type localError struct{ msg, hint string }

func (e *localError) Error() string { return e.msg }

// oneLine makes s fit for a terminal: one bounded line of printable characters.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\r' || r == '\t':
			return ' '
		case r == unicode.ReplacementChar || !unicode.IsPrint(r):
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	if len(s) > maxLine {
		s = strings.ToValidUTF8(s[:maxLine], "") + "…"
	}
	return s
}
