package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// made makes a sandbox over HTTP for a test of its own.
func made(t *testing.T, tok string) sandbox {
	t.Helper()
	a := call(t, tok, "POST", "/v1/sandboxes", `{"ttl":"10m"}`)
	if a.status != http.StatusCreated {
		t.Fatalf("create: %d %s", a.status, a.body)
	}
	var s sandbox
	a.decode(t, &s)
	t.Cleanup(func() { call(t, tok, "DELETE", "/v1/sandboxes/"+s.ID, ""); noLeftovers(t, s) })
	return s
}

type ran struct {
	ExecID         string `json:"exec_id"`
	ExitCode       int    `json:"exit_code"`
	Signal         string
	Stdout, Stderr string
	Running        bool
	Cursor         string
}

func execute(t *testing.T, tok, id, command string) ran {
	t.Helper()
	body, err := json.Marshal(map[string]string{"command": command})
	if err != nil {
		t.Fatal(err)
	}
	a := call(t, tok, "POST", "/v1/sandboxes/"+id+"/exec", string(body))
	var r ran
	a.decode(t, &r)
	return r
}

// Threat 79: the file API resolves inside the sandbox, as its user.
func TestFilesStayInsideTheSandbox(t *testing.T) {
	tok := token(t, "--subject", "files")
	s := made(t, tok)
	files := "/v1/sandboxes/" + s.ID + "/files"
	octets := []string{"Content-Type", "application/octet-stream"}
	if a := call(t, tok, "PUT", files+"?path=d/x.sh&mode=0755", "#!/bin/sh\nid -un; pwd\n", octets...); a.status != 200 {
		t.Fatalf("PUT: %d %s", a.status, a.body)
	}
	if r := execute(t, tok, s.ID, "d/x.sh; stat -c %U:%a d/x.sh"); r.Stdout != "dev\n/workspace\ndev:755\n" {
		t.Errorf("what was written: %+v", r)
	}
	if a := call(t, tok, "GET", files+"?path=d/x.sh", "", "Range", "bytes=2-8"); a.status != 206 || a.body != "/bin/sh" {
		t.Errorf("range: %d %q", a.status, a.body)
	}
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	prepare := execute(t, tok, s.ID, `ln -s /etc/shadow shadow; ln -s /etc/hostname name; mkfifo fifo; truncate -s 1T sparse; mkdir -p up; ln -s ../../../../.. up/root
		echo keep > target; ln -s /workspace/target link; sudo sh -c 'echo secret > /root/s; ln /root/s /workspace/hard; chmod 600 /root/s'`)
	if prepare.ExitCode != 0 {
		t.Fatalf("prepare: %+v", prepare)
	}
	for path, want := range map[string]struct {
		status int
		code   string
	}{
		"shadow":                       {403, "policy_denied"},
		"hard":                         {403, "policy_denied"},
		"fifo":                         {400, "invalid_spec"},
		"/dev/zero":                    {400, "invalid_spec"},
		"sparse":                       {400, "invalid_spec"},
		"/proc/self/root/none":         {404, "not_found"},
		"../../../../var/lib/podspawn": {404, "not_found"},
		"up/root/etc/podspawn":         {404, "not_found"},
	} {
		if a := call(t, tok, "GET", files+"?path="+path, ""); a.status != want.status || a.code(t) != want.code {
			t.Errorf("GET %s = %d %s, want %d %s", path, a.status, clip(a.body), want.status, want.code)
		}
	}
	for _, path := range []string{"/etc/passwd", "/proc/self/root/etc/passwd", "up/root/etc/passwd"} {
		a := call(t, tok, "GET", files+"?path="+path, "")
		own, err := os.ReadFile("/etc/passwd")
		if err != nil {
			t.Fatal(err)
		}
		if a.status != 200 || a.body == string(own) || !strings.Contains(a.body, "dev:x:1000:") {
			t.Errorf("GET %s is not the sandbox's: %d %s (host %s)", path, a.status, clip(a.body), hostname)
		}
	}
	if a := call(t, tok, "PUT", files+"?path=link", "new", octets...); a.status != 200 {
		t.Errorf("PUT over a link: %d %s", a.status, a.body)
	}
	if r := execute(t, tok, s.ID, "cat target link; test -L link"); r.Stdout != "keep\nnew" || r.ExitCode != 1 {
		t.Errorf("a link was followed: %+v", r)
	}
	if a := call(t, tok, "PUT", files+"?path=/etc/evil", "x", octets...); a.status != 403 {
		t.Errorf("PUT to /etc: %d %s, want 403", a.status, a.body)
	}
	var evil bytes.Buffer
	w := tar.NewWriter(&evil)
	for _, h := range []tar.Header{{Name: "out", Typeflag: tar.TypeSymlink, Linkname: "/workspace"}, {Name: "out/slipped", Typeflag: tar.TypeReg}} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if a := call(t, tok, "PUT", files+"?path=in", evil.String(), "Content-Type", "application/x-tar"); a.status != 400 {
		t.Errorf("zip slip: %d %s", a.status, a.body)
	}
	if r := execute(t, tok, s.ID, "ls slipped /workspace/.podspawn-*"); r.ExitCode == 0 {
		t.Errorf("left: %+v", r)
	}
	if a := call(t, token(t, "--subject", "files-other"), "GET", files+"?path=d/x.sh", ""); a.status != 404 {
		t.Errorf("another tenant: %d", a.status)
	}
	log := run(t, nil, "grep", "-c", fmt.Sprintf(`"event":"file.written".*"sandbox":"%s"`, s.ID), "/var/log/podspawn/audit.jsonl")
	if n := strings.TrimSpace(log.stdout); n != "4" {
		t.Errorf("the audit log has %s file.written, want 4 (also of the refused ones)", n)
	}
}

// Threat 90, and what cp is for.
func TestCopyBothWays(t *testing.T) {
	s := create(t)
	dir := t.TempDir()
	big := bytes.Repeat([]byte("0123456789abcde\n"), 1<<20) // 16 MiB
	if err := os.MkdirAll(filepath.Join(dir, "src/sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "src/sub/big"), big, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "src/run.sh"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if r := run(t, nil, podspawn, "cp", filepath.Join(dir, "src"), s.ID+":"); r.code != 0 {
		t.Fatalf("cp in: %v", r)
	}
	hostile := `cd src && stat -c %a run.sh && md5sum < sub/big && ln -s / l && mkdir -p .git/hooks .vscode && touch .git/hooks/post-checkout .envrc .vscode/tasks.json && chmod 4755 run.sh`
	r := run(t, nil, podspawn, "ssh", s.ID, "--", hostile)
	if r.code != 0 || !strings.HasPrefix(r.stdout, "755\n") {
		t.Fatalf("in the sandbox: %v", r)
	}
	if r := run(t, nil, podspawn, "cp", s.ID+":src", filepath.Join(dir, "out")); r.code != 0 || !strings.Contains(r.stderr, ".envrc") {
		t.Fatalf("cp out: %v", r)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "out/sub/big")); err != nil || !bytes.Equal(got, big) {
		t.Errorf("16 MiB came back as %d bytes, %v", len(got), err)
	}
	if st, err := os.Lstat(filepath.Join(dir, "out/run.sh")); err != nil || st.Mode() != 0o755 {
		t.Errorf("run.sh: %v %v", st, err)
	}
	for _, name := range []string{"l", ".git", ".envrc", ".vscode"} {
		if _, err := os.Lstat(filepath.Join(dir, "out", name)); err == nil {
			t.Errorf("cp took %s out of the sandbox", name)
		}
	}
	if r := run(t, nil, podspawn, "cp", s.ID+":src/run.sh", "-"); r.code != 0 || r.stdout != "#!/bin/sh\n" {
		t.Errorf("cp to stdout: %v", r)
	}
	if r := run(t, nil, podspawn, "cp", s.ID+":none", dir); r.code != 3 {
		t.Errorf("cp of nothing: %v, want 3", r)
	}
}

// A background process outlives its call, is fed, signaled and polled, and dies with its sandbox.
func TestBackgroundCommandInASandbox(t *testing.T) {
	tok := token(t, "--subject", "background")
	s := made(t, tok)
	exec := "/v1/sandboxes/" + s.ID + "/exec"
	var r ran
	call(t, tok, "POST", exec, `{"command":"echo pid $$; while read x; do echo \"got $x\"; done; echo over; sleep 600","background":true}`).decode(t, &r)
	if !r.Running || r.ExitCode != -1 {
		t.Fatalf("exec = %+v", r)
	}
	one := exec + "/" + r.ExecID
	call(t, tok, "POST", one+"/input", `{"data":"a\nb\n","eof":true}`)
	eventually(t, 10*time.Second, func() error {
		r = ran{}
		call(t, tok, "GET", one, "").decode(t, &r)
		if !strings.Contains(r.Stdout, "got a\ngot b\nover\n") {
			return fmt.Errorf("poll = %+v", r)
		}
		return nil
	})
	if a := call(t, token(t, "--subject", "background-other"), "GET", one, ""); a.status != 404 {
		t.Errorf("another tenant polls: %d %s", a.status, a.body)
	}
	if a := call(t, tok, "POST", one+"/signal", `{"signal":"TERM"}`); a.status != 200 {
		t.Errorf("signal: %d %s", a.status, a.body)
	}
	cursor := r.Cursor
	r = ran{}
	call(t, tok, "GET", one+"?wait_seconds=10&cursor="+cursor, "").decode(t, &r)
	if r.Running || r.Signal != "TERM" || r.Stdout != "" {
		t.Errorf("after TERM: %+v", r)
	}
	// Threat 81.
	r = ran{}
	call(t, tok, "POST", exec, `{"command":"echo head; head -c 30000000 /dev/zero; echo tail","wait_seconds":20}`).decode(t, &r)
	if r.Running || len(r.Stdout) > 2<<20 || !strings.HasPrefix(r.Stdout, "head\n") || !strings.HasSuffix(r.Stdout, "tail\n") {
		t.Errorf("flood: %d bytes, running %v", len(r.Stdout), r.Running)
	}
	r = ran{}
	call(t, tok, "POST", exec, `{"command":"sleep 600","background":true}`).decode(t, &r)
	call(t, tok, "DELETE", "/v1/sandboxes/"+s.ID, "")
	if a := call(t, tok, "GET", exec+"/"+r.ExecID+"?wait_seconds=20", ""); a.status != 410 && a.status != 404 {
		t.Errorf("after the sandbox ended: %d %s", a.status, a.body)
	}
}

func TestExecOnTheCommandLine(t *testing.T) {
	s := create(t)
	r := run(t, strings.NewReader("in"), podspawn, "exec", "-i", "-e", "A=b c", "-w", "/tmp", s.ID, "--", "sh", "-c", `cat; echo " $A $PWD"; id -un >&2; exit 9`)
	if r.code != 9 || r.stdout != "in b c /tmp\n" || r.stderr != "dev\n" {
		t.Errorf("exec: %v", r)
	}
	if r := run(t, nil, podspawn, "exec", "-u", "root", s.ID, "--", "sh", "-c", "id -u; kill -9 $$"); r.code != 137 || r.stdout != "0\n" {
		t.Errorf("exec as root: %v", r)
	}
	if r := run(t, nil, podspawn, "exec", s.ID, "--", "no-such-program"); r.code != 127 {
		t.Errorf("exec of nothing: %v", r)
	}
	if r := run(t, nil, podspawn, "exec", "none", "--", "id"); r.code != 255 || !strings.Contains(r.stderr, "hint") {
		t.Errorf("exec in nothing: %v", r)
	}
	if r := run(t, nil, "script", "-qec", podspawn+" exec -it "+s.ID+" -- sh -c 'tty; stty size; exit 4'", "/dev/null"); r.code != 4 || !strings.Contains(r.stdout, "/dev/pts/") {
		t.Errorf("exec with a terminal: %v", r)
	}
}

// Anybody on the host may connect to podspawn.sock, and leave at once.
func TestCallersThatHangUpAtOnceEndNothing(t *testing.T) {
	need(t)
	for range 300 {
		c, err := net.Dial("unix", "/run/podspawn/podspawn.sock")
		if err != nil {
			t.Fatalf("the socket is gone: %v", err)
		}
		_ = c.Close() // that is the test
	}
	if r := run(t, nil, podspawn, "list", "--json"); r.code != 0 {
		t.Errorf("list after that: %v", r)
	}
}

func TestValidateSaysWhatCreateWouldDo(t *testing.T) {
	tok := token(t, "--subject", "validate", "--max-sandboxes", "1", "--max-ttl", "30m")
	type validation struct {
		Podfile string
		Digest  string `json:"spec_digest"`
		Denied  []struct{ Code string }
	}
	check := func(body string, want ...string) validation {
		t.Helper()
		a := call(t, tok, "POST", "/v1/validate", body)
		var v validation
		a.decode(t, &v)
		var codes []string
		for _, d := range v.Denied {
			codes = append(codes, d.Code)
		}
		if a.status != 200 || strings.Join(codes, " ") != strings.Join(want, " ") {
			t.Errorf("validate %s: %d %s, want denied %v", body, a.status, a.body, want)
		}
		return v
	}
	good := `{"ttl":"10m"}`
	v := check(good)
	check(`{"ttl":"2h"}`, "policy_denied")
	s := made(t, tok)
	if s.Digest != v.Digest {
		t.Errorf("made with digest %s, validated %s", s.Digest, v.Digest)
	}
	check(good, "quota_exceeded")
}
