package agent

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestCollector(t *testing.T) {
	tests := []struct {
		name  string
		limit int
		write []string
		want  string
		cut   bool
	}{
		{"nothing", 8, nil, "", false},
		{"fits exactly", 8, []string{"abcd", "efgh"}, "abcdefgh", false},
		{"one write too long", 8, []string{"abcdefghij"}, "abcd\n[podspawn: 2 bytes left out]\nghij", true},
		{"byte by byte", 4, []string{"a", "b", "c", "d", "e", "f"}, "ab\n[podspawn: 2 bytes left out]\nef", true},
		{"ring turns inside a write", 8, []string{"abcd", "efg", "hij", "k"}, "abcd\n[podspawn: 3 bytes left out]\nhijk", true},
		{"tail replaced as a whole", 8, []string{"abcde", "0123456789"}, "abcd\n[podspawn: 7 bytes left out]\n6789", true},
		{"limit of one", 1, []string{"abc"}, "a\n[podspawn: 2 bytes left out]\n", true},
		{"not UTF-8", 8, []string{"a\xffb"}, "a\uFFFDb", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newCollector(tt.limit)
			for _, w := range tt.write {
				if n, err := c.Write([]byte(w)); n != len(w) || err != nil {
					t.Fatalf("Write(%q) = %d, %v", w, n, err)
				}
			}
			if got := c.String(); got != tt.want {
				t.Errorf("String = %q, want %q", got, tt.want)
			}
			if c.truncated() != tt.cut {
				t.Errorf("truncated = %v, want %v", c.truncated(), tt.cut)
			}
		})
	}
}

// FuzzCollectorKeepsHeadAndTail compares with keeping everything.
func FuzzCollectorKeepsHeadAndTail(f *testing.F) {
	f.Add("hello, world", 3, 6)
	f.Fuzz(func(t *testing.T, s string, size, limit int) {
		if size < 1 || size > 100 || limit < 1 || limit > 1000 {
			return
		}
		c := newCollector(limit)
		for rest := s; rest != ""; {
			n := min(size, len(rest))
			_, _ = c.Write([]byte(rest[:n])) // never fails
			rest = rest[n:]
		}
		got := c.String()
		if !utf8.ValidString(got) {
			t.Fatalf("String is not UTF-8: %q", got)
		}
		if len(s) <= limit {
			if want := strings.ToValidUTF8(s, "\uFFFD"); got != want {
				t.Errorf("String = %q, want all of %q", got, want)
			}
			return
		}
		if utf8.ValidString(s) && isASCII(s) {
			head, tail := s[:limit-limit/2], s[len(s)-limit/2:]
			if !strings.HasPrefix(got, head) || !strings.HasSuffix(got, tail) {
				t.Errorf("String = %q, want head %q and tail %q", got, head, tail)
			}
		}
	})
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
