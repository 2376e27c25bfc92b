package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// inLab reports whether this process runs in a lab of scripts/lab.sh.
func inLab() bool { return os.Getenv("PODSPAWN_LAB") != "" }

// missing says why the tests can't run here.
var missing string

func TestMain(m *testing.M) {
	if op := os.Getenv("E2E_ASK"); op != "" {
		os.Exit(askDaemon(op))
	}
	if os.Getenv("E2E_ESCAPE") != "" {
		os.Exit(escape())
	}
	if dir := os.Getenv("E2E_INTERNET"); dir != "" {
		os.Exit(serveInternet(dir))
	}
	if !inLab() {
		missing = "needs a lab: go test -exec \"$PWD/scripts/lab.sh --install\" ./e2e"
		os.Exit(m.Run())
	}
	h, err := setUpHost()
	if err != nil {
		fmt.Fprintln(os.Stderr, "set up the lab's host:", err)
		h.dump(os.Stderr)
		os.Exit(1)
	}
	host = h
	code := m.Run()
	if code != 0 {
		h.dump(os.Stderr)
	}
	h.stop()
	os.Exit(code)
}

// host is the lab's machine, set up once for all tests.
var host *machine

func need(t *testing.T) *machine {
	t.Helper()
	if host != nil {
		return host
	}
	if r := "," + os.Getenv("PODSPAWN_TEST_REQUIRE") + ","; strings.Contains(r, ",sshd,") || strings.Contains(r, ",docker,") || strings.Contains(r, ",gvisor,") {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return nil
}

// machine is a host with podspawn on it.
type machine struct {
	mu       sync.Mutex
	procs    map[string]*exec.Cmd
	logs     string
	realUser string // a user of /etc/passwd with a key of her own
	realKey  string
}

const (
	podspawn = "/usr/local/bin/podspawn"
	sshd     = "/usr/sbin/sshd"
	helper   = "/usr/local/bin/e2e-helper" // this program, where every user can run it
)

func setUpHost() (*machine, error) {
	h := &machine{procs: map[string]*exec.Cmd{}, logs: "/var/log/podspawn"}
	if err := os.MkdirAll(h.logs, 0o750); err != nil {
		return h, err
	}
	steps := []struct {
		name string
		do   func() error
	}{
		{"helper", func() error { return command("install", "-m", "755", os.Args[0], helper) }},
		{"host keys", func() error { return command("ssh-keygen", "-A") }},
		{"a real user", h.addRealUser},
		{"sshd", func() error {
			return command(sshd, "-E", h.logs+"/sshd.log", "-o", "ListenAddress=127.0.0.1", "-o", "LogLevel=VERBOSE")
		}},
		{"configuration", func() error { return configure(noPool) }},
		{"server-setup", func() error { return command(podspawn, "server-setup") }},
		{"dockerd", h.startDockerd},
		{"base image", func() error { return command(podspawn, "image", "build") }},
		{"service", h.startService},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return h, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return h, nil
}

// noPool is the configuration of the lab's host: tests count what is left, so
// nothing may be there that no test made. Those of the pool have their own.
const noPool = "pool: {size: 0}\n"

func configure(text string) error {
	const file = "/etc/podspawn/config.yaml"
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

func (h *machine) addRealUser() error {
	h.realUser, h.realKey = "realuser", "/run/real_ed25519"
	if err := command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", h.realKey); err != nil {
		return err
	}
	return command("sh", "-ec", `useradd -m -s /bin/bash realuser
		install -d -m 700 -o realuser ~realuser/.ssh
		install -m 600 -o realuser /run/real_ed25519.pub ~realuser/.ssh/authorized_keys
		install -d -m 700 /root/.ssh; install -m 600 /run/real_ed25519.pub /root/.ssh/authorized_keys`)
}

// start runs a server in a session of its own, logged to a file.
func (h *machine) start(name string, argv ...string) error {
	f, err := os.OpenFile(filepath.Join(h.logs, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	h.mu.Lock()
	h.procs[name] = cmd
	h.mu.Unlock()
	return nil
}

// end signals a server that start started and waits for it.
func (h *machine) end(name string, sig syscall.Signal) error {
	h.mu.Lock()
	cmd := h.procs[name]
	delete(h.procs, name)
	h.mu.Unlock()
	if cmd == nil {
		return nil
	}
	if err := cmd.Process.Signal(sig); err != nil {
		return err
	}
	_ = cmd.Wait() // a killed process reports that it was
	return nil
}

func (h *machine) startDockerd() error {
	args := []string{"dockerd", "--log-level=warn"}
	if os.Getenv("E2E_DOCKER_IPTABLES") == "" { // with it, Docker has its own bridge and firewall rules
		args = append(args, "--bridge=none", "--iptables=false", "--ip6tables=false")
	}
	if err := h.start("dockerd", args...); err != nil {
		return err
	}
	return poll(60*time.Second, func() error { return command("docker", "version") })
}

func (h *machine) startService() error {
	for _, name := range []string{"daemon", "serve", "resolver"} {
		if err := h.start(name, podspawn, name); err != nil {
			return err
		}
	}
	return h.awaitReady()
}

func (h *machine) awaitReady() error {
	return poll(30*time.Second, func() error {
		resp, err := http.Get("http://127.0.0.1:7722/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz: %s: %s", resp.Status, body)
		}
		return nil
	})
}

func (h *machine) stop() {
	for _, name := range []string{"resolver", "serve", "daemon", "dockerd"} {
		_ = h.end(name, syscall.SIGTERM) // the lab ends with everything in it
	}
}

// dump shows the ends of the logs.
func (h *machine) dump(w io.Writer) {
	files, _ := filepath.Glob(filepath.Join(h.logs, "*.log"))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		if len(lines) > 60 {
			lines = lines[len(lines)-60:]
		}
		fmt.Fprintf(w, "---- %s\n%s\n", f, strings.Join(lines, "\n"))
	}
}

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// poll calls f until it succeeds or time is up.
func poll(limit time.Duration, f func() error) error {
	deadline := time.Now().Add(limit)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause)
	}
}

// eventually fails the test when f does not succeed in time.
func eventually(t *testing.T, limit time.Duration, f func() error) {
	t.Helper()
	if err := poll(limit, f); err != nil {
		t.Errorf("after %s: %v", limit, err)
	}
}

// result is a finished program.
type result struct {
	code           int
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("exit %d\nstdout: %s\nstderr: %s", r.code, clip(r.stdout), clip(r.stderr))
}

func clip(s string) string {
	if len(s) > 2000 {
		return s[:2000] + "…"
	}
	return s
}

// run runs a program to its end, for at most two minutes.
func run(t *testing.T, stdin io.Reader, name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("%s %q does not end\nstdout: %s\nstderr: %s", name, args, clip(out.String()), clip(errs.String()))
	}
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return result{code: cmd.ProcessState.ExitCode(), stdout: out.String(), stderr: errs.String()}
}

// sandbox is what the tests use of podspawn's JSON.
type sandbox struct {
	ID        string `json:"id"`
	Login     string `json:"login"`
	State     string `json:"state"`
	Reason    string `json:"reason"`
	ExpiresAt string `json:"expires_at"`
	Digest    string `json:"spec_digest"`
	Refusals  []struct {
		Reason string `json:"reason"`
	} `json:"last_refusals"`
}

// create makes a sandbox that ends with the test.
func create(t *testing.T, args ...string) sandbox {
	t.Helper()
	need(t)
	r := run(t, nil, podspawn, append([]string{"create", "--json"}, args...)...)
	if r.code != 0 {
		t.Fatalf("podspawn create: %v", r)
	}
	var s sandbox
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
		t.Fatalf("podspawn create --json: %v: %s", err, r.stdout)
	}
	t.Cleanup(func() {
		run(t, nil, podspawn, "destroy", s.ID)
		noLeftovers(t, s)
	})
	return s
}

func get(t *testing.T, id string) sandbox {
	t.Helper()
	r := run(t, nil, podspawn, "get", id, "--json")
	var s sandbox
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
		t.Fatalf("podspawn get %s --json: %v: %v", id, err, r)
	}
	return s
}

// client is a folder with key, certificate, known_hosts and ssh_config.
type client struct {
	dir   string
	login string
}

// shortDir is a folder of the test's whose path leaves room for a socket's name,
// which may have 107 bytes in all.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "e2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// connectable issues a certificate with podspawn cert.
func connectable(t *testing.T, s sandbox, args ...string) client {
	t.Helper()
	dir := filepath.Join(shortDir(t), "ssh")
	r := run(t, nil, podspawn, append([]string{"cert", s.ID, "--out", dir}, args...)...)
	if r.code != 0 {
		t.Fatalf("podspawn cert: %v", r)
	}
	return client{dir: dir, login: s.Login}
}

// args are ssh's for this client. Tests that count connections must not share
// one, so the config's ControlMaster is off unless asked for.
func (c client) args(more ...string) []string {
	return append([]string{"-F", filepath.Join(c.dir, "ssh_config"), "-o", "BatchMode=yes", "-o", "ControlMaster=no", "-o", "ControlPath=none"}, more...)
}

// ssh runs a command (or a shell, without one) over the client's certificate.
func (c client) ssh(t *testing.T, stdin io.Reader, args ...string) result {
	t.Helper()
	return run(t, stdin, "ssh", append(c.args(c.login), args...)...)
}

// noLeftovers fails the test when anything of the sandbox is on the host.
func noLeftovers(t *testing.T, s sandbox) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		return errors.Join(
			absent("docker", "ps", "-aq", "--filter", "label=dev.podspawn.sandbox="+s.ID),
			absent("sh", "-c", "getent passwd "+s.Login+"; grep -rl "+s.Login+" /var/lib/extrausers; true"),
			absent("sh", "-c", "ls -d /run/netns/"+s.Login+" /etc/netns/"+s.Login+" /run/podspawn/guests/"+s.ID+" 2>/dev/null; true"),
			noBridge(s),
			noProcess(s.ID, s.Login),
		)
	})
}

// noProcess returns an error when a process names one of the words in its
// arguments, or pins a mount with one in its path.
func noProcess(words ...string) error {
	files, err := filepath.Glob("/proc/[0-9]*/[cm]*")
	if err != nil {
		return err
	}
	for _, f := range files {
		if name := filepath.Base(f); name != "cmdline" && name != "mountinfo" {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it ended
		}
		for _, w := range words {
			if bytes.Contains(b, []byte(w)) && !bytes.HasPrefix(b, []byte("ssh: ")) {
				return fmt.Errorf("left behind: %s names %s: %s", f, w, clip(string(bytes.ReplaceAll(b, []byte{0}, []byte(" ")))))
			}
		}
	}
	return nil
}

// absent returns an error when a program prints anything.
func absent(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return err
	}
	if s := strings.TrimSpace(string(out)); s != "" {
		return fmt.Errorf("left behind: %s", s)
	}
	return nil
}
