package mcpserver

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

// escapes are terminal control sequences: CSI, then the string kinds (OSC, DCS,
// SOS, PM, APC) up to their terminator or the line's end, then two-character ones.
var escapes = regexp.MustCompile(`(?:\x1b\[|\x{9b})[0-?]*[ -/]*[@-~]?` +
	`|(?:\x1b[\]PX^_]|[\x{90}\x{98}\x{9d}-\x{9f}])[^\x07\x1b\x{9c}\n]*(?:\x07|\x1b\\|\x{9c})?` +
	`|\x1b[ -/]*[0-~]?`)

// cleanText removes from a program's output what a reader would not see but a
// terminal or a model would act on: escape sequences, control characters, and
// invisible formatting (direction overrides, tag characters).
func cleanText(s string) string {
	s = strings.ReplaceAll(s, "\r\n", "\n")
	s = escapes.ReplaceAllString(s, "")
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r == '\r': // a progress bar's next state
			return '\n'
		case unicode.IsControl(r), invisible(r):
			return -1
		}
		return r
	}, s)
}

func invisible(r rune) bool {
	switch {
	case r == 0x200D: // joins emoji
		return false
	case r >= 0xE0000 && r <= 0xE0FFF, r == 0xFEFF:
		return true
	}
	return unicode.Is(unicode.Cf, r)
}

// capText keeps head and tail of a text that exceeds limit bytes, with a mark.
func capText(s string, limit int) (string, bool) {
	if len(s) <= limit {
		return s, false
	}
	const room = 64 // for the mark
	half := (limit - room) / 2
	head, tail := s[:half], s[len(s)-half:]
	mark := fmt.Sprintf("\n[podspawn: %d bytes left out]\n", len(s)-2*half)
	return strings.ToValidUTF8(head, "") + mark + strings.ToValidUTF8(tail, ""), true
}
