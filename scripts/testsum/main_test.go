package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSummary(t *testing.T) {
	tests := map[string]struct {
		events   string
		last     string
		contains string
		status   int
	}{
		"passed/parent counts by its subtests": {
			events: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/x"}
{"Action":"run","Package":"p","Test":"TestA/y"}
{"Action":"pass","Package":"p","Test":"TestA/x"}
{"Action":"pass","Package":"p","Test":"TestA/y"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`,
			last: "2 passed, 0 failed, 0 skipped", contains: "ok  \tp",
		},
		"failed/with its output": {
			events: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: got 1, want 2\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}
`,
			last: "0 passed, 1 failed, 0 skipped", contains: "got 1, want 2", status: 1,
		},
		"failed/subtest counts, its parent does not": {
			events: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/x"}
{"Action":"fail","Package":"p","Test":"TestA/x"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestB"}
{"Action":"run","Package":"p","Test":"TestB/x"}
{"Action":"pass","Package":"p","Test":"TestB/x"}
{"Action":"fail","Package":"p","Test":"TestB"}
`,
			last: "1 passed, 2 failed, 0 skipped", status: 1,
		},
		"failed/package that does not build": {
			events: `{"ImportPath":"p [p.test]","Action":"build-output","Output":"./a.go:1: syntax error\n"}
{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}
`,
			last: "0 passed, 1 failed, 0 skipped", contains: "syntax error", status: 1,
		},
		"failed/panic outside any ended test": {
			events: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"panic: boom\n"}
{"Action":"fail","Package":"p"}
`,
			last: "0 passed, 1 failed, 0 skipped", contains: "panic: boom", status: 1,
		},
		"skipped/with the reason": {
			events: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: needs root\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
`,
			last: "0 passed, 0 failed, 1 skipped", contains: "skipped: p TestA: a_test.go:3: needs root",
		},
		"nothing to count": {
			events: "", last: "0 passed, 0 failed, 0 skipped", status: 1,
		},
		"no event": {
			events: "go: no such tool\n", last: "0 passed, 0 failed, 0 skipped", contains: "no such tool", status: 1,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			log := filepath.Join(t.TempDir(), "log")
			var out, errs bytes.Buffer
			status := run([]string{"-log", log}, strings.NewReader(test.events), &out, &errs)
			if status != test.status {
				t.Errorf("status = %d, want %d (%s)", status, test.status, errs.String())
			}
			if got := lastLine(out.String()); got != test.last {
				t.Errorf("last line = %q, want %q", got, test.last)
			}
			if !strings.Contains(out.String(), test.contains) {
				t.Errorf("output %q does not contain %q", out.String(), test.contains)
			}
			if kept, err := os.ReadFile(log); err != nil || string(kept) != test.events {
				t.Errorf("log = %q, %v, want the events", kept, err)
			}

			out.Reset()
			if status := run([]string{"-total", log}, nil, &out, &errs); status != test.status {
				t.Errorf("-total: status = %d, want %d", status, test.status)
			}
			if got := lastLine(out.String()); got != test.last {
				t.Errorf("-total: last line = %q, want %q", got, test.last)
			}
		})
	}
}

func TestTotalAddsFailuresThatAreNoTests(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(log, []byte(`{"Action":"pass","Package":"p","Test":"TestA"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if status := run([]string{"-total", "-failed", "2", log}, nil, &out, &out); status != 1 {
		t.Errorf("status = %d, want 1", status)
	}
	if got, want := lastLine(out.String()), "1 passed, 2 failed, 0 skipped"; got != want {
		t.Errorf("last line = %q, want %q", got, want)
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
