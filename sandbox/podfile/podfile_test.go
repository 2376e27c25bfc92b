package podfile

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"

	"github.com/google/go-cmp/cmp"
)

func base() sandbox.Spec { return sandbox.Spec{}.WithDefaults(sandbox.BuiltinDefaults()) }

func TestParse(t *testing.T) {
	tests := []struct {
		name string
		text string
		edit func(*sandbox.Spec) // of base
	}{
		{"empty", "", func(*sandbox.Spec) {}},
		{"comments only", "# nothing\n", func(*sandbox.Spec) {}},
		{"document start", "---\nimage: debian\n", func(s *sandbox.Spec) { s.Image = "debian" }},
		{"everything", `
name: backend
image: podspawn/base:1   # a comment
env: {DATABASE_URL: "postgres://a:b@db:5432/dev", PORT: 8080, DEBUG: true, VERSION: 1.10, EMPTY: ""}
user: 1000
shell: /bin/bash
workspace: /work/app
resources: {cpus: 2.5, memory: 2g, disk: 512m, pids: 100}
network: {egress: none}
ssh: {forwarding: false, agent: false, x11: false, sftp: false}
lifecycle: {ttl: 90, idle_timeout: 1h30m, on_exit: keep, grace: 0s}
`, func(s *sandbox.Spec) {
			s.Name, s.Image, s.User, s.Shell, s.Workspace = "backend", "podspawn/base:1", "1000", "/bin/bash", "/work/app"
			s.Env = map[string]string{
				"DATABASE_URL": "postgres://a:b@db:5432/dev", "PORT": "8080", "DEBUG": "true", "VERSION": "1.10", "EMPTY": "",
			}
			s.Resources = sandbox.Resources{CPUs: 2.5, Memory: 2 << 30, Disk: 512 << 20, PIDs: 100}
			s.SSH, s.Network.Egress = sandbox.SSHRights{}, sandbox.EgressNone
			s.Lifecycle = sandbox.Lifecycle{TTL: 90 * time.Second, IdleTimeout: 90 * time.Minute, OnExit: sandbox.OnExitKeep}
		}},
		{"block text", "env:\n  SCRIPT: |\n    a\n    b\n", func(s *sandbox.Spec) { s.Env = map[string]string{"SCRIPT": "a\nb\n"} }},
		{"sizes in bytes and fractions", "resources: {memory: 1.5GiB, disk: 1073741824}", func(s *sandbox.Spec) {
			s.Resources.Memory, s.Resources.Disk = 3<<29, 1<<30
		}},
		{"a value for validation to refuse", "network: {egress: full}", func(s *sandbox.Spec) { s.Network.Egress = "full" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse([]byte(tt.text), base())
			if err != nil {
				t.Fatalf("Parse = %v", err)
			}
			want := base()
			tt.edit(&want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Parse (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseMergesEnvWithoutChangingBase(t *testing.T) {
	b := base()
	b.Env = map[string]string{"A": "1", "B": "1"}
	got, err := Parse([]byte("env: {B: 2}"), b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"A": "1", "B": "2"}, got.Env); diff != "" {
		t.Errorf("env (-want +got):\n%s", diff)
	}
	if b.Env["B"] != "1" {
		t.Errorf("base's env was changed: %v", b.Env)
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct {
		name, text string
		kind       sandbox.Kind
		msg, hint  string // parts
	}{
		{"unknown/top level", "image: x\nimagee: y\n", sandbox.KindUnknownField, `podfile line 2: unknown key "imagee"`, "did you mean image?"},
		{"unknown/in a section", "resources:\n  memroy: 2g\n", sandbox.KindUnknownField, `line 2: unknown key "memroy" in resources`, "did you mean resources.memory?"},
		{"unknown/dash for underscore", "lifecycle: {idle-timeout: 5m}", sandbox.KindUnknownField, "idle-timeout", "idle_timeout"},
		{"unknown/nothing near", "zzzzzz: 1", sandbox.KindUnknownField, "zzzzzz", "the keys are env, image"},
		{"unknown/escapes are not repeated", "\"\\e[2J\": 1", sandbox.KindUnknownField, `\x1b[2J`, ""},

		// Threat 77: nothing of the host can even be named.
		{"host/privileged", "privileged: true", sandbox.KindUnknownField, "privileged", ""},
		{"host/network mode", "network_mode: host", sandbox.KindUnknownField, "network_mode", ""},
		{"host/network host", "network: {mode: host}", sandbox.KindUnknownField, "mode", ""},
		{"host/pid", "pid: host", sandbox.KindUnknownField, "pid", ""},
		{"host/ipc", "ipc: host", sandbox.KindUnknownField, "ipc", ""},
		{"host/cap_add", "cap_add: [SYS_ADMIN]", sandbox.KindUnknownField, "cap_add", ""},
		{"host/devices", "devices: [/dev/kvm]", sandbox.KindUnknownField, "devices", ""},
		{"host/mounts", "mounts: [/:/host]", sandbox.KindUnknownField, "mounts", ""},
		{"host/runtime", "runtime: runc", sandbox.KindUnknownField, "runtime", ""},
		{"host/security_opt", "security_opt: [seccomp=unconfined]", sandbox.KindUnknownField, "security_opt", ""},
		{"host/docker socket as a volume", "volumes: [/var/run/docker.sock:/s]", sandbox.KindInvalidSpec, "volumes: not supported yet", ""},

		{"later/base", "base: go", sandbox.KindInvalidSpec, "line 1: base: not supported yet by this version", "leave it out"},
		{"later/extends a system file", "extends: ../../etc/passwd", sandbox.KindInvalidSpec, "extends: not supported yet", ""},
		{"later/extends a private address", "extends: http://127.0.0.1/x", sandbox.KindInvalidSpec, "extends: not supported yet", ""},
		{"later/packages", "packages: []", sandbox.KindInvalidSpec, "packages: not supported yet", ""},
		{"later/services", "services: [{name: db}]", sandbox.KindInvalidSpec, "services: not supported yet", ""},
		{"later/secrets", "secrets: [T]", sandbox.KindInvalidSpec, "secrets: not supported yet", ""},
		{"later/egress list", "network: {egress: [api.example.com]}", sandbox.KindEgressDenied, "network.egress: a list of hosts is not supported yet", "none"},

		{"yaml/anchor bomb", "a: &a [x]\nb: &b [*a,*a]\n", sandbox.KindInvalidSpec, "line 1: YAML anchors", ""},
		{"yaml/merge key", "env:\n  <<: {A: b}\n", sandbox.KindInvalidSpec, "line 2: YAML anchors, aliases and merge keys", ""},
		{"yaml/tag", "image: !!binary aGk=\n", sandbox.KindInvalidSpec, "line 1: YAML tags", ""},
		{"yaml/directive", "%YAML 1.2\n---\nimage: x\n", sandbox.KindInvalidSpec, "YAML tags and directives", ""},
		{"yaml/complex key", "? [a]\n: b\n", sandbox.KindInvalidSpec, "complex keys", ""},
		{"yaml/two documents", "image: a\n---\nimage: b\n", sandbox.KindInvalidSpec, "more than one YAML document", ""},
		{"yaml/duplicate key", "image: a\nimage: b\n", sandbox.KindInvalidSpec, "line 2", ""},
		{"yaml/syntax", "image: [a\n", sandbox.KindInvalidSpec, "podfile line", ""},
		{"yaml/list", "- a\n", sandbox.KindInvalidSpec, "it is a list, not a mapping", ""},
		{"yaml/text", "hello\n", sandbox.KindInvalidSpec, "it is text, not a mapping", ""},
		{"yaml/deep flow", strings.Repeat("[", 100_000), sandbox.KindInvalidSpec, "nested more than", ""},
		{"yaml/deep sequence", strings.Repeat("- ", 100_000), sandbox.KindInvalidSpec, "", ""},
		{"yaml/deep block", deepBlock(700), sandbox.KindInvalidSpec, "nested more than", ""},
		{"yaml/too large", strings.Repeat("#", MaxSize+1), sandbox.KindInvalidSpec, "larger than 256 KiB", ""},
		{"yaml/NUL", "image: a\nuser: \x00", sandbox.KindInvalidSpec, "line 2: it holds a NUL byte", ""},
		{"yaml/not UTF-8", "image: \xff", sandbox.KindInvalidSpec, "not UTF-8", ""},

		{"value/missing", "image:\n", sandbox.KindInvalidSpec, "image has no value", ""},
		{"value/env missing", "env:\n  A:\n", sandbox.KindInvalidSpec, "env.A has no value", ""},
		{"value/env list", "env: [A=b]", sandbox.KindInvalidSpec, "env is a list", ""},
		{"value/nested", "env: {A: {B: c}}", sandbox.KindInvalidSpec, "env.A is a mapping", ""},
		{"value/section is text", "resources: big", sandbox.KindInvalidSpec, "resources is text", "cpus, disk"},
		{"value/bool as text", `ssh: {sftp: "no"}`, sandbox.KindInvalidSpec, "ssh.sftp is text", "true or false"},
		{"value/size", "resources: {memory: lots}", sandbox.KindInvalidSpec, "resources.memory", "512m"},
		{"value/size overflows", "resources: {memory: 9999999999999t}", sandbox.KindInvalidSpec, "resources.memory", ""},
		{"value/negative size", "resources: {disk: -1}", sandbox.KindInvalidSpec, "resources.disk", ""},
		{"value/fraction of a byte", "resources: {disk: 1.5}", sandbox.KindInvalidSpec, "resources.disk", ""},
		{"value/cpus NaN", "resources: {cpus: .nan}", sandbox.KindInvalidSpec, "resources.cpus", ""},
		{"value/cpus infinite", "resources: {cpus: .inf}", sandbox.KindInvalidSpec, "resources.cpus", ""},
		{"value/cpus exponent", "resources: {cpus: 1e9}", sandbox.KindInvalidSpec, "resources.cpus", ""},
		{"value/pids", "resources: {pids: 1.5}", sandbox.KindInvalidSpec, "resources.pids", ""},
		{"value/duration", "lifecycle: {ttl: soon}", sandbox.KindInvalidSpec, "lifecycle.ttl", "90s"},
		{"value/negative duration", "lifecycle: {ttl: -5m}", sandbox.KindInvalidSpec, "lifecycle.ttl", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Now()
			s, err := Parse([]byte(tt.text), base())
			if err == nil {
				t.Fatalf("Parse = %+v, want an error", s)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("Parse took %v", took)
			}
			p := sandbox.Public(err)
			if p.Kind != tt.kind || !strings.Contains(p.Msg, tt.msg) || !strings.Contains(p.Hint, tt.hint) || p.Hint == "" {
				t.Errorf("Parse = %s %q (%q), want %s %q (%q)", p.Kind, p.Msg, p.Hint, tt.kind, tt.msg, tt.hint)
			}
			if len(p.Msg) > 400 || strings.ContainsAny(p.Msg+p.Hint, "\n\x1b") {
				t.Errorf("message %q (%q) repeats foreign text unbounded or raw", p.Msg, p.Hint)
			}
		})
	}
}

// deepBlock is n mappings inside each other.
func deepBlock(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

func TestFromObject(t *testing.T) {
	const object = `{"image": "debian", "env": {"PORT": 8080, "DEBUG": true}, "resources": {"cpus": 0.5, "memory": 1073741824},
		"lifecycle": {"ttl": 90, "grace": "0s"}}`
	want := base()
	want.Image, want.Env = "debian", map[string]string{"PORT": "8080", "DEBUG": "true"}
	want.Resources.CPUs, want.Lifecycle.TTL, want.Lifecycle.Grace = 0.5, 90*time.Second, 0
	var in map[string]any
	if err := json.Unmarshal([]byte(object), &in); err != nil {
		t.Fatal(err)
	}
	got, err := FromObject(in, base())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("FromObject (-want +got):\n%s", diff)
	}
	for text, kind := range map[string]sandbox.Kind{
		`{"privileged": true}`:           sandbox.KindUnknownField,
		`{"services": []}`:               sandbox.KindInvalidSpec,
		`{"image": null}`:                sandbox.KindInvalidSpec,
		`{"resources": {"cpus": 1e300}}`: sandbox.KindInvalidSpec,
		strings.Repeat(`{"env":`, 50) + `1` + strings.Repeat(`}`, 50): sandbox.KindInvalidSpec,
	} {
		var in map[string]any
		if err := json.Unmarshal([]byte(text), &in); err != nil {
			t.Fatal(err)
		}
		if _, err := FromObject(in, base()); err == nil || sandbox.KindOf(err) != kind {
			t.Errorf("FromObject(%s) = %v, want %s", text, err, kind)
		}
	}
}

func TestFind(t *testing.T) {
	tests := []struct {
		name  string
		files []string
		want  string
		kind  sandbox.Kind
	}{
		{"in the folder", []string{"podfile.yaml", ".podspawn/podfile.yaml", ".devcontainer.json"}, "podfile.yaml", ""},
		{"in .podspawn", []string{".podspawn/podfile.yaml", ".devcontainer.json"}, ".podspawn/podfile.yaml", ""},
		{"only a devcontainer", []string{".devcontainer/devcontainer.json"}, "", sandbox.KindInvalidSpec},
		{"nothing", nil, "", sandbox.KindNotFound},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, f := range tt.files {
				p := filepath.Join(dir, f)
				if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(p, []byte("image: x"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := Find(dir)
			if tt.kind != "" {
				if err == nil || sandbox.KindOf(err) != tt.kind || sandbox.Public(err).Hint == "" {
					t.Fatalf("Find = %q, %v, want %s with a hint", got, err, tt.kind)
				}
				return
			}
			if err != nil || got != filepath.Join(dir, tt.want) {
				t.Errorf("Find = %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestReadFileIsBounded(t *testing.T) {
	dir := t.TempDir()
	big, pipe := filepath.Join(dir, "big"), filepath.Join(dir, "pipe")
	if err := os.WriteFile(big, make([]byte, MaxSize+1), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(pipe, 0o644); err != nil {
		t.Fatal(err)
	}
	for path, kind := range map[string]sandbox.Kind{
		big: sandbox.KindInvalidSpec, pipe: sandbox.KindInvalidSpec, dir: sandbox.KindInvalidSpec,
		filepath.Join(dir, "none"): sandbox.KindNotFound,
	} {
		if _, err := ReadFile(path); err == nil || sandbox.KindOf(err) != kind {
			t.Errorf("ReadFile(%s) = %v, want %s", filepath.Base(path), err, kind)
		}
	}
}
