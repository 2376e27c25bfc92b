package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Threat 88: any edit, removal, reordering or cut of the audit log is found.
func TestAuditVerify(t *testing.T) {
	s := create(t, "--grace", "0s")
	connectable(t, s).ssh(t, nil, "true")
	wantState(t, s, "destroyed", "exited")
	if r := run(t, nil, podspawn, "audit", "--verify"); r.code != 0 || !strings.Contains(r.stdout, "unbroken") {
		t.Fatalf("podspawn audit --verify: %v", r)
	}
	if r := run(t, nil, podspawn, "audit", "--sandbox", s.Login); r.code != 0 || !strings.Contains(r.stdout, "sandbox.destroyed") ||
		!strings.Contains(r.stdout, "removed=connections container socket login") || strings.Contains(r.stdout, "token.issued") {
		t.Errorf("podspawn audit --sandbox: %v", r)
	}
	b, err := os.ReadFile(auditLog)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(strings.TrimSuffix(string(b), "\n"), "\n")
	n := len(lines)
	lines[n-1] += "\n"
	swapped := append([]string{}, lines...)
	swapped[n-2], swapped[n-3] = swapped[n-3], swapped[n-2]
	for _, tc := range []struct{ name, text string }{
		{"edited", strings.Replace(string(b), `"subject":"root"`, `"subject":"boot"`, 1)},
		{"a line removed", strings.Join(append(append([]string{}, lines[:n-2]...), lines[n-1]), "")},
		{"the first lines removed", strings.Join(lines[2:], "")},
		{"reordered", strings.Join(swapped, "")},
		{"the last line cut off", strings.Join(lines[:n-1], "")},
		{"cut in the middle of a line", strings.TrimSuffix(string(b), "\n")},
		{"emptied", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "audit.jsonl")
			if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			r := run(t, nil, podspawn, "audit", "--verify", "--file", file)
			if r.code != 1 || r.stdout != "" || !strings.Contains(r.stderr, "podspawn: hint: ") {
				t.Errorf("podspawn audit --verify: %v, want exit 1 and a hint", r)
			}
		})
	}
}
