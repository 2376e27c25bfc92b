package pid1

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox/guest"
)

const (
	testPasswd = "root:x:0:0:root:/root:/bin/bash\n# comment:x:5:5::/:/bin/sh\n\nshort:x:1\nbad:x:many:1::/:/bin/sh\n" +
		"dev:x:1000:1000:Dev,,,:/home/dev:/bin/zsh\nminus:x:4294967295:0::/:/bin/sh\n1234:x:77:77::/odd:/bin/sh\n"
	testGroup = "root:x:0:\ndev:x:1000:\nsudo:x:27:someone,dev\nbroken:x\ndocker:x:999:dev,dev\nlast:x:5000:devel\n"
)

func testUsers(t *testing.T, passwd, group string) users {
	t.Helper()
	dir := t.TempDir()
	u := users{passwd: filepath.Join(dir, "passwd"), group: filepath.Join(dir, "group")}
	for path, text := range map[string]string{u.passwd: passwd, u.group: group} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

func TestLookup(t *testing.T) {
	u := testUsers(t, testPasswd, testGroup)
	dev := account{name: "dev", uid: 1000, gid: 1000, groups: []uint32{27, 999}, home: "/home/dev", shell: "/bin/zsh"}
	inSudo := dev
	inSudo.gid = 27
	for spec, want := range map[string]account{
		"":         {name: "root", home: "/root", shell: "/bin/bash"},
		"root":     {name: "root", home: "/root", shell: "/bin/bash"},
		"dev":      dev,
		"1000":     dev,
		"dev:sudo": inSudo,
		"dev:27":   inSudo,
		"1234":     {name: "1234", uid: 77, gid: 77, home: "/odd", shell: "/bin/sh"}, // a name comes first
		"4242":     {name: "4242", uid: 4242},
		"4242:7":   {name: "4242", uid: 4242, gid: 7},
	} {
		got, err := u.lookup(spec)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(account{})); err != nil || diff != "" {
			t.Errorf("lookup(%q): %v, (-want +got)\n%s", spec, err, diff)
		}
	}
	for _, spec := range []string{"nobody", "bad", "minus", "short", "4294967295", "-1", "dev:none", "dev:", "# comment", "../x", strings.Repeat("x", 10000)} {
		if got, err := u.lookup(spec); err == nil {
			t.Errorf("lookup(%q) = %+v, want an error", spec, got)
		} else if len(err.Error()) > 300 {
			t.Errorf("lookup(%.20q…): error of %d bytes", spec, len(err.Error()))
		}
	}
}

func TestLookupWithHostileFiles(t *testing.T) {
	u := users{passwd: filepath.Join(t.TempDir(), "passwd"), group: "/no/such/group"}
	if a, err := u.lookup("0"); err != nil || a.name != "root" || a.home != "/root" {
		t.Errorf("no passwd: %+v, %v, want root", a, err)
	}
	if err := unix.Mkfifo(u.passwd, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := u.lookup("dev"); err == nil { // and it must not block
		t.Error("a fifo was read")
	}
	for _, path := range []string{"/dev/zero", "/proc"} {
		u.passwd = path
		if _, err := u.lookup("dev"); err == nil {
			t.Errorf("%s was read", path)
		}
	}
	u = testUsers(t, strings.Repeat("x", 2*maxDatabase)+"\n"+testPasswd, "")
	if _, err := u.lookup("dev"); err == nil {
		t.Error("what is beyond the bound was read")
	}
}

func TestEnviron(t *testing.T) {
	a := account{name: "dev"}
	got, err := environ(a, "/bin/sh", "/home/dev", "vt100", map[string]string{"A": "1", "PATH": "/x"}, map[string]string{"A": "2", "B_2": "x=y\n"})
	want := []string{"A=2", "B_2=x=y\n", "HOME=/home/dev", "LOGNAME=dev", "PATH=/x", "SHELL=/bin/sh", "TERM=vt100", "USER=dev"}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("environ: %v, (-want +got)\n%s", err, diff)
	}
	for _, name := range []string{"", "1A", "A-B", "A=B", "A B", "Ä", "A\x00", strings.Repeat("A", 257)} {
		if _, err := environ(a, "", "", "", map[string]string{name: "x"}); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
	if _, err := environ(a, "", "", "", map[string]string{"A": "x\x00y"}); err == nil {
		t.Error("a zero byte was accepted")
	}
}

func TestValidTerm(t *testing.T) {
	for s, want := range map[string]string{
		"xterm-256color": "xterm-256color", "screen.linux": "screen.linux", "": "dumb", "../../x": "dumb",
		"a/b": "dumb", ".x": "dumb", "x\ny": "dumb", strings.Repeat("x", 65): "dumb",
	} {
		if got := validTerm(s); got != want {
			t.Errorf("validTerm(%q) = %q, want %q", s, got, want)
		}
	}
}

func TestParseStat(t *testing.T) {
	for s, want := range map[string]int{
		"12 (sh) S 1 12 12 0 0":             12,
		"13 (evil) Z 1 1 1) R 12 13 44 0 0": 44,
		"14 (a) ) S 1 2 3 0":                3,
	} {
		if _, got, ok := parseStat([]byte(s)); !ok || got != want {
			t.Errorf("parseStat(%q) = %d, %t, want %d", s, got, ok, want)
		}
	}
	for _, s := range []string{"", "12 sh S 1 2 3", "12 (sh) S 1 2", "12 (sh) S 1 2 x", "12 (sh)"} {
		if _, _, ok := parseStat([]byte(s)); ok {
			t.Errorf("parseStat(%q) succeeded", s)
		}
	}
}

func TestParseSudo(t *testing.T) {
	env := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	for line, want := range map[string]sudoOptions{
		"id -u":                    {user: "root", env: env(), command: []string{"id", "-u"}},
		"-u dev id":                {user: "dev", env: env(), command: []string{"id"}},
		"-udev -nH id":             {user: "dev", env: env(), command: []string{"id"}},
		"-nu dev id":               {user: "dev", env: env(), command: []string{"id"}},
		"-u #1000 id":              {user: "1000", env: env(), command: []string{"id"}},
		"--user=dev --login":       {user: "dev", login: true, env: env(), command: []string{}},
		"--user dev -s":            {user: "dev", shell: true, env: env(), command: []string{}},
		"-E A=1 B=2 sh -c x=1":     {user: "root", preserveEnv: true, env: env("A", "1", "B", "2"), command: []string{"sh", "-c", "x=1"}},
		"--preserve-env=A,B -- -x": {user: "root", preserveEnv: true, env: env(), command: []string{"-x"}},
		"-v":                       {user: "root", nothing: true, env: env(), command: []string{}},
		"-i A=1 echo":              {user: "root", login: true, env: env("A", "1"), command: []string{"echo"}},
	} {
		got, err := parseSudo(strings.Fields(line))
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(sudoOptions{})); err != nil || diff != "" {
			t.Errorf("parseSudo(%q): %v, (-want +got)\n%s", line, err, diff)
		}
	}
	for _, line := range []string{"", "-u", "--user", "-u dev", "-x id", "--chroot=/ id", "-E A=1", "-"} {
		if _, err := parseSudo(strings.Fields(line)); err == nil && line != "-" {
			t.Errorf("parseSudo(%q) succeeded", line)
		}
	}
}

func TestWorkDir(t *testing.T) {
	base := t.TempDir()
	me := account{uid: uint32(os.Getuid()), gid: uint32(os.Getgid())}
	work := filepath.Join(base, "a/b/work")
	p := guest.Preamble{Work: work}
	if got, err := workDir(p, guest.Exec{Dir: filepath.Join(base, "none")}, me, "/"); err == nil {
		t.Errorf("a missing directory that is not the workspace: %q", got)
	}
	if got, err := workDir(p, guest.Exec{}, me, "/"); err != nil || got != work {
		t.Errorf("workDir = %q, %v, want the workspace, made", got, err)
	}
	if st, err := os.Stat(work); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("workspace: %v, %v", st, err)
	}
	if err := os.Mkdir(filepath.Join(work, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := workDir(p, guest.Exec{Dir: "sub"}, me, "/"); err != nil || got != filepath.Join(work, "sub") {
		t.Errorf("relative: %q, %v", got, err)
	}
	if got, err := workDir(guest.Preamble{}, guest.Exec{}, me, base); err != nil || got != base {
		t.Errorf("no workspace: %q, %v, want home", got, err)
	}
	if got, err := workDir(guest.Preamble{}, guest.Exec{}, me, "/no/such"); err != nil || got != "/" {
		t.Errorf("neither: %q, %v, want /", got, err)
	}
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "x"), "a\x00b"} {
		if got, err := workDir(p, guest.Exec{Dir: dir}, me, "/"); err == nil {
			t.Errorf("workDir(%q) = %q", dir, got)
		}
	}
}

func FuzzUserDatabaseNeverPanics(f *testing.F) {
	f.Add(testPasswd, testGroup, "dev:sudo")
	f.Fuzz(func(t *testing.T, passwd, group, spec string) {
		a, err := testUsers(t, passwd, group).lookup(spec)
		if err == nil && (a.uid == 1<<32-1 || a.gid == 1<<32-1 || len(a.groups) > maxGroups) {
			t.Errorf("lookup(%q) = %+v", spec, a)
		}
	})
}

func FuzzParseStatNeverPanics(f *testing.F) {
	f.Add([]byte("12 (sh) S 1 12 12 0 0"))
	f.Fuzz(func(t *testing.T, b []byte) { parseStat(b) })
}
