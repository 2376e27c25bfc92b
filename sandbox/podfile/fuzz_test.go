package podfile

import (
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"

	"github.com/google/go-cmp/cmp"
)

func FuzzParseNeverPanics(f *testing.F) {
	for _, s := range []string{
		"", "image: x", "a: &a [*a]", "env: {A: 1}\n", "? a\n: b", "- - - a", "x: |\n  y\n", "'", "\"\\u", "{a: [b, {c: d}]}",
		"---\n...\n---\n", "#", "\t", "a:\n b:\n  c: d", "resources: {memory: 1.5g}", "lifecycle: {ttl: 1h}", "a: !!x y", "%A\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		start := time.Now()
		s, err := Parse(data, base())
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("Parse took %v", took)
		}
		if err != nil {
			if p := sandbox.Public(err); p.Kind == sandbox.KindInternal || p.Hint == "" {
				t.Errorf("Parse = %v, want an error for the user, with a hint", err)
			}
			return
		}
		_ = s.Validate()
	})
}

// FuzzSpecRoundTrip: what Marshal writes, Parse reads as the same spec.
func FuzzSpecRoundTrip(f *testing.F) {
	f.Add("backend", "podspawn/base", "A", "b\n\t\x1b\u0085\u2028\ufeff\x7f", "dev", "/bin/sh", "/w x", 1.5, int64(1<<30), int64(90*time.Second), true)
	f.Add("null", "a", "B", "null", "true", "/~", "/0x10", 0.1, int64(1<<26+1), int64(0), false)
	f.Add("0", "a:1", "on", "  - # 'x' \"y\" \\", "0", "/a", "/b", 64.0, int64(1<<35), int64(1), false)
	f.Fuzz(func(t *testing.T, name, image, key, val, user, shell, workspace string, cpus float64, memory, grace int64, sftp bool) {
		s := base()
		s.Name, s.Image, s.User, s.Shell, s.Workspace = name, image, user, shell, workspace
		s.Env = map[string]string{key: val}
		s.Resources.CPUs, s.Resources.Memory = cpus, memory
		s.Lifecycle.Grace, s.SSH.SFTP = time.Duration(grace), sftp
		if s.Validate() != nil {
			return
		}
		text := Marshal(s)
		got, err := Parse(text, sandbox.Spec{})
		if err != nil {
			t.Fatalf("Parse(Marshal(%+v)) = %v\n%s", s, err, text)
		}
		if got.Digest() != s.Digest() {
			t.Errorf("digest changed (-want +got):\n%s\n%s", cmp.Diff(s, got), text)
		}
	})
}
