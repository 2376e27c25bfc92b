package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/podspawn/podspawn/sandbox"
)

// TestExitCodesOfKinds: the table of the public contract.
func TestExitCodesOfKinds(t *testing.T) {
	want := map[sandbox.Kind]int{
		sandbox.KindInvalidSpec: 2, sandbox.KindUnknownField: 2,
		sandbox.KindNotFound: 3, sandbox.KindGone: 3, sandbox.KindImageNotFound: 3,
		sandbox.KindUnauthorized: 4, sandbox.KindInsufficientScope: 4, sandbox.KindPolicy: 4, sandbox.KindEgressDenied: 4,
		sandbox.KindConflict: 5, sandbox.KindQuota: 5, sandbox.KindCapacity: 5, sandbox.KindIdempotencyMismatch: 5,
		sandbox.KindUnavailable: 6,
		sandbox.KindNotReady:    1, sandbox.KindTimeout: 1, sandbox.KindInternal: 1,
	}
	for kind, code := range want {
		err := fmt.Errorf("wrapped: %w", &sandbox.Error{Kind: kind, Msg: "m"})
		if got := exitCode(err); got != code {
			t.Errorf("exitCode(%s) = %d, want %d", kind, got, code)
		}
		if got := exitCode(ours(err)); got != exitOurs {
			t.Errorf("exitCode(%s in ssh) = %d, want %d", kind, got, exitOurs)
		}
		if _, hint := words(err); hint == "" {
			t.Errorf("words(%s) has no hint", kind)
		}
	}
}

func TestReportWritesOneLineEach(t *testing.T) {
	a, out, errs := testApp(nil)
	code := a.report(&sandbox.Error{Kind: sandbox.KindGone, Msg: "a\nb\x1b]0;x\a", Hint: "c\u202ed\x9b", Err: errors.New("private")})
	want := "podspawn: error: a\\x0ab\\x1b]0;x\\x07\npodspawn: hint: c\\u202ed\\x9b\n"
	if code != exitNotFound || errs.String() != want || out.String() != "" {
		t.Errorf("report = %d and %q on stderr, %q on stdout, want 3 and %q", code, errs, out, want)
	}
}

func TestReportSaysNothingForAStatus(t *testing.T) {
	a, _, errs := testApp(nil)
	if code := a.report(statusError(42)); code != 42 || errs.String() != "" {
		t.Errorf("report = %d and %q, want 42 and nothing", code, errs)
	}
}

// TestTableEscapesWhatTenantsWrite: threat 87.
func TestTableEscapesWhatTenantsWrite(t *testing.T) {
	var b strings.Builder
	rows := [][]string{{"A", "B"}, {"\x1b[2J\x1b]52;c;aGk=\a", ""}, {"x\ty", "é 漢"}}
	if err := printTable(&b, rows); err != nil {
		t.Fatal(err)
	}
	for _, r := range b.String() {
		if r < ' ' && r != '\n' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			t.Errorf("the table holds %q: %q", r, b.String())
		}
	}
	if !strings.Contains(b.String(), `\x1b[2J`) || !strings.Contains(b.String(), "é 漢") || strings.Count(b.String(), "\n") != 3 {
		t.Errorf("printTable = %q", b.String())
	}
}

func FuzzOneLineIsPrintable(f *testing.F) {
	for _, seed := range []string{"", "a", "\x1b[0m", "\xff\xfe", "\u202e", "\u009b", "a\nb", "\U000e0001"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := oneLine(s)
		for _, r := range got {
			if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r >= 0x202a && r <= 0x202e {
				t.Errorf("oneLine(%q) = %q", s, got)
			}
		}
	})
}

func TestTakeSecretsRemovesThemFromChildren(t *testing.T) {
	t.Setenv(envToken, "a.b.c")
	t.Setenv(envTokenFile, "/some/where")
	getenv, err := takeSecrets(os.Getenv, os.Unsetenv)
	if err != nil {
		t.Fatal(err)
	}
	if getenv(envToken) != "a.b.c" || getenv(envTokenFile) != "/some/where" || getenv("PATH") == "" {
		t.Error("the values are lost for ourselves")
	}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, envToken) {
			t.Errorf("children would inherit %s", strings.SplitN(kv, "=", 2)[0])
		}
	}
}

func TestRemoteCommandKeepsWords(t *testing.T) {
	tests := map[string]struct {
		command []string
		tty     bool
		want    string
	}{
		"shell":                 {nil, true, ""},
		"one word is for sh":    {[]string{"a && b"}, false, "-- a && b"},
		"several are a program": {[]string{"echo", "a b", "$HOME", "it's"}, false, `-- echo 'a b' '$HOME' 'it'\''s'`},
		"terminal":              {[]string{"top"}, true, "-t -- top"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			before, after := remoteCommand(tt.command, tt.tty)
			if got := strings.Join(append(before, after...), " "); got != tt.want {
				t.Errorf("remoteCommand(%q) = %q, want %q", tt.command, got, tt.want)
			}
		})
	}
}
