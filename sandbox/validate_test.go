package sandbox

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// good is a valid spec whose fields are all set.
func good() Spec {
	s := Spec{
		Name:  "backend",
		Image: "podspawn/base",
		Env:   map[string]string{"PATH": "/bin", "LD_PRELOAD": "theirs.so", "_x9": "ünï\n\t\x1b"},
		User:  "dev",
		Shell: "/bin/bash",
	}
	return s.WithDefaults(BuiltinDefaults())
}

func TestValidate(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0a", 32)
	image := func(v string) func(*Spec) { return func(s *Spec) { s.Image = v } }
	env := func(k, v string) func(*Spec) { return func(s *Spec) { s.Env = map[string]string{k: v} } }
	user := func(v string) func(*Spec) { return func(s *Spec) { s.User = v } }
	shell := func(v string) func(*Spec) { return func(s *Spec) { s.Shell = v } }
	workspace := func(v string) func(*Spec) { return func(s *Spec) { s.Workspace = v } }
	name := func(v string) func(*Spec) { return func(s *Spec) { s.Name = v } }
	egress := func(v Egress) func(*Spec) { return func(s *Spec) { s.Network.Egress = v } }
	cpus := func(v float64) func(*Spec) { return func(s *Spec) { s.Resources.CPUs = v } }
	memory := func(v int64) func(*Spec) { return func(s *Spec) { s.Resources.Memory = v } }
	disk := func(v int64) func(*Spec) { return func(s *Spec) { s.Resources.Disk = v } }
	pids := func(v int64) func(*Spec) { return func(s *Spec) { s.Resources.PIDs = v } }
	life := func(f func(*Lifecycle)) func(*Spec) { return func(s *Spec) { f(&s.Lifecycle) } }

	tests := []struct {
		name   string
		edit   func(*Spec)
		kind   Kind   // "" is valid
		prefix string // of the message
	}{
		{"ok/all set", func(*Spec) {}, "", ""},
		{"ok/optional fields empty", func(s *Spec) { s.Name, s.User, s.Shell, s.Env = "", "", "", nil }, "", ""},

		{"image/tag", image("debian:bookworm-slim"), "", ""},
		{"image/host, port and digest", image("reg.example:5000/a/b_c/d--e:1.2@" + digest), "", ""},
		{"image/bare id", image(digest), "", ""},
		{"image/missing", image(""), KindInvalidSpec, "image:"},
		{"image/option", image("--privileged"), KindInvalidSpec, "image:"},
		{"image/space", image("debian bookworm"), KindInvalidSpec, "image:"},
		{"image/newline", image("debian\n"), KindInvalidSpec, "image:"},
		{"image/dots", image("../../etc"), KindInvalidSpec, "image:"},
		{"image/upper case path", image("Debian"), KindInvalidSpec, "image:"},
		{"image/short digest", image("debian@sha256:00"), KindInvalidSpec, "image:"},
		{"image/255 bytes", image(strings.Repeat("a", 255)), "", ""},
		{"image/256 bytes", image(strings.Repeat("a", 256)), KindInvalidSpec, "image:"},

		{"env/empty value", env("A", ""), "", ""},
		{"env/empty name", env("", "x"), KindInvalidSpec, "env:"},
		{"env/equals in name", env("A=B", "x"), KindInvalidSpec, "env:"},
		{"env/digit first", env("1A", "x"), KindInvalidSpec, "env:"},
		{"env/NUL", env("A", "x\x00y"), KindInvalidSpec, "env.A:"},
		{"env/not UTF-8", env("A", "\xff"), KindInvalidSpec, "env.A:"},
		{"env/64 KiB", env("A", strings.Repeat("x", 64<<10-1)), "", ""},
		{"env/over 64 KiB", env("A", strings.Repeat("x", 64<<10)), KindInvalidSpec, "env:"},
		{"env/256 entries", func(s *Spec) { s.Env = entries(256) }, "", ""},
		{"env/257 entries", func(s *Spec) { s.Env = entries(257) }, KindInvalidSpec, "env:"},

		{"user/root", user("root"), "", ""},
		{"user/uid", user("2147483647"), "", ""},
		{"user/uid 0", user("0"), "", ""},
		{"user/uid too big", user("2147483648"), KindInvalidSpec, "user:"},
		{"user/minus one", user("-1"), KindInvalidSpec, "user:"},
		{"user/octal", user("010"), KindInvalidSpec, "user:"},
		{"user/with group", user("dev:root"), KindInvalidSpec, "user:"},
		{"user/33 characters", user(strings.Repeat("a", 33)), KindInvalidSpec, "user:"},

		{"shell/relative", shell("bash"), KindInvalidSpec, "shell:"},
		{"shell/dots", shell("/bin/../bin/sh"), KindInvalidSpec, "shell:"},
		{"shell/newline", shell("/bin/sh\n"), KindInvalidSpec, "shell:"},
		{"shell/NUL", shell("/bin/sh\x00"), KindInvalidSpec, "shell:"},

		{"workspace/deep", workspace("/home/dev/a b"), "", ""},
		{"workspace/like a system one", workspace("/processes"), "", ""},
		{"workspace/empty", workspace(""), KindInvalidSpec, "workspace:"},
		{"workspace/root", workspace("/"), KindInvalidSpec, "workspace:"},
		{"workspace/slash at the end", workspace("/work/"), KindInvalidSpec, "workspace:"},
		{"workspace/proc", workspace("/proc"), KindInvalidSpec, "workspace:"},
		{"workspace/in sys", workspace("/sys/x"), KindInvalidSpec, "workspace:"},
		{"workspace/in dev", workspace("/dev/shm"), KindInvalidSpec, "workspace:"},
		{"workspace/guest's", workspace("/.podspawn/x"), KindInvalidSpec, "workspace:"},
		{"workspace/escape", workspace("/w\x1b[2J"), KindInvalidSpec, "workspace:"},
		{"workspace/direction override", workspace("/w\u202e"), KindInvalidSpec, "workspace:"},
		{"workspace/too long", workspace("/" + strings.Repeat("w", 1024)), KindInvalidSpec, "workspace:"},

		{"name/63", name(strings.Repeat("a", 63)), "", ""},
		{"name/64", name(strings.Repeat("a", 64)), KindInvalidSpec, "name:"},
		{"name/upper case", name("Backend"), KindInvalidSpec, "name:"},
		{"name/dash first", name("-x"), KindInvalidSpec, "name:"},
		{"name/an id", name(string(NewID())), KindInvalidSpec, "name:"},
		{"name/a login", name(NewID().Login()), KindInvalidSpec, "name:"},

		{"resources/cpus NaN", cpus(math.NaN()), KindInvalidSpec, "resources.cpus:"},
		{"resources/cpus infinite", cpus(math.Inf(1)), KindInvalidSpec, "resources.cpus:"},
		{"resources/cpus zero", cpus(0), KindInvalidSpec, "resources.cpus:"},
		{"resources/cpus half", cpus(0.5), "", ""},
		{"resources/memory zero", memory(0), KindInvalidSpec, "resources.memory:"},
		{"resources/memory most", memory(256 << 30), "", ""},
		{"resources/memory more", memory(256<<30 + 1), KindInvalidSpec, "resources.memory:"},
		{"resources/disk negative", disk(-1), KindInvalidSpec, "resources.disk:"},
		{"resources/disk over the largest class", disk(50<<30 + 1), KindInvalidSpec, "resources.disk:"},
		{"resources/pids unlimited", pids(-1), KindInvalidSpec, "resources.pids:"},

		{"egress/public", egress("public"), "", ""},
		{"egress/none", egress("none"), "", ""},
		{"egress/full", egress("full"), KindEgressDenied, "network.egress: full is not supported yet"},
		{"egress/host", egress("host"), KindInvalidSpec, "network.egress:"},
		{"egress/missing", egress(""), KindInvalidSpec, "network.egress:"},

		{"ssh/x11", func(s *Spec) { s.SSH.X11 = true }, KindInvalidSpec, "ssh.x11: not supported yet"},
		{"ssh/no sftp", func(s *Spec) { s.SSH.SFTP = false }, "", ""},

		{"lifecycle/least ttl", life(func(l *Lifecycle) { l.TTL = 10 * time.Second }), "", ""},
		{"lifecycle/ttl too short", life(func(l *Lifecycle) { l.TTL = 10*time.Second - 1 }), KindInvalidSpec, "lifecycle.ttl:"},
		{"lifecycle/ttl too long", life(func(l *Lifecycle) { l.TTL = 24*time.Hour + 1 }), KindInvalidSpec, "lifecycle.ttl:"},
		{"lifecycle/no idle", life(func(l *Lifecycle) { l.IdleTimeout = 0 }), KindInvalidSpec, "lifecycle.idle_timeout:"},
		{"lifecycle/no grace", life(func(l *Lifecycle) { l.Grace = 0 }), "", ""},
		{"lifecycle/negative grace", life(func(l *Lifecycle) { l.Grace = -1 }), KindInvalidSpec, "lifecycle.grace:"},
		{"lifecycle/on_exit", life(func(l *Lifecycle) { l.OnExit = "restart" }), KindInvalidSpec, "lifecycle.on_exit:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := good()
			tt.edit(&s)
			checkRefusal(t, s.Validate(), tt.kind, tt.prefix)
		})
	}
}

func TestValidateLabels(t *testing.T) {
	tests := []struct {
		name   string
		labels map[string]string
		kind   Kind
	}{
		{"none", nil, ""},
		{"plain", map[string]string{"team": "a b", "app.example/x": ""}, ""},
		{"empty key", map[string]string{"": "x"}, KindInvalidSpec},
		{"space in key", map[string]string{"a b": "x"}, KindInvalidSpec},
		{"equals in key", map[string]string{"a=b": "x"}, KindInvalidSpec},
		{"ours", map[string]string{"dev.podspawn.sandbox": "x"}, KindInvalidSpec},
		{"escape in value", map[string]string{"a": "\x1b]0;owned\a"}, KindInvalidSpec},
		{"long value", map[string]string{"a": strings.Repeat("x", 257)}, KindInvalidSpec},
		{"too many", entries(33), KindInvalidSpec},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			checkRefusal(t, ValidateLabels(tt.labels), tt.kind, "labels")
		})
	}
}

// TestValidateNeverShowsEnvValues: an env value may be a secret.
func TestValidateNeverShowsEnvValues(t *testing.T) {
	s := good()
	s.Env = map[string]string{"TOKEN": "hunter2\x00"}
	if err := s.Validate(); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("Validate = %v, want an error without the value", err)
	}
}

func TestWithDefaultsKeepsWhatIsSet(t *testing.T) {
	s := Spec{Image: "other", Resources: Resources{CPUs: 3}, Lifecycle: Lifecycle{OnExit: OnExitKeep}}
	got := s.WithDefaults(BuiltinDefaults())
	want := good()
	want.Name, want.Env, want.User, want.Shell = "", nil, "", ""
	want.Image, want.Resources.CPUs, want.Lifecycle.OnExit = "other", 3, OnExitKeep
	if got.Digest() != want.Digest() {
		t.Errorf("WithDefaults = %+v, want %+v", got, want)
	}
}

// FuzzValidSpecHasOneDigest: what Validate accepts survives the way from the API
// process to the daemon as JSON with the same digest.
func FuzzValidSpecHasOneDigest(f *testing.F) {
	f.Add("podspawn/base", "A", "b", "dev", "/bin/sh", "/w", 1.5)
	f.Fuzz(func(t *testing.T, image, key, value, user, shell, workspace string, cpus float64) {
		s := good()
		s.Image, s.User, s.Shell, s.Workspace, s.Resources.CPUs = image, user, shell, workspace, cpus
		s.Env = map[string]string{key: value}
		if s.Validate() != nil {
			return
		}
		if got := throughJSON(t, s).Digest(); got != s.Digest() {
			t.Errorf("digest after JSON = %s, want %s for %+v", got, s.Digest(), s)
		}
	})
}

func checkRefusal(t *testing.T, err error, kind Kind, prefix string) {
	t.Helper()
	if kind == "" {
		if err != nil {
			t.Fatalf("got %v, want no error", err)
		}
		return
	}
	if err == nil {
		t.Fatalf("got no error, want %s", kind)
	}
	p := Public(err)
	if p.Kind != kind || !strings.HasPrefix(p.Msg, prefix) {
		t.Errorf("got %s %q, want %s %q…", p.Kind, p.Msg, kind, prefix)
	}
	if p.Hint == "" {
		t.Errorf("%q has no hint", p.Msg)
	}
	if len(p.Msg) > 500 || strings.ContainsAny(p.Msg, "\n\x1b\x00") {
		t.Errorf("message %q repeats foreign text unbounded or raw", p.Msg)
	}
}

func entries(n int) map[string]string {
	m := make(map[string]string, n)
	for i := range n {
		m[fmt.Sprintf("K%d", i)] = "v"
	}
	return m
}

func throughJSON(t *testing.T, s Spec) Spec {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var got Spec
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	return got
}
