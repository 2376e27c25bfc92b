package e2e

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// asRealUser logs in as a user of /etc/passwd with her own key.
func (h *machine) asRealUser(t *testing.T, login, cmd string) result {
	t.Helper()
	return run(t, nil, "ssh", "-F", "none", "-i", h.realKey, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", login+"@127.0.0.1", cmd)
}

// Threat 95 and the promise of server-setup: everybody else logs in as before.
func TestRealUsersAreUntouched(t *testing.T) {
	h := need(t)
	create(t)
	hostNS, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, login := range []string{"root", h.realUser} {
		r := h.asRealUser(t, login, "id -un; readlink /proc/self/ns/net; echo $SHELL")
		want := login + "\n" + hostNS + "\n/bin/bash\n"
		if r.code != 0 || r.stdout != want {
			t.Errorf("ssh %s@host: %v, want %q", login, r, want)
		}
	}
}

// Threats 36, 37, 40-43: whatever the client asks for, it happens inside.
func TestCommandsRunInside(t *testing.T) {
	s := create(t)
	c := connectable(t, s)
	marker := filepath.Join(t.TempDir(), "marker")
	for _, cmd := range []string{
		"/bin/bash -c 'touch " + marker + "'", "$(touch " + marker + ")", "`touch " + marker + "`", "; touch " + marker,
		"x\ntouch " + marker, "' ; touch " + marker + " '", "/usr/libexec/podspawn/podspawn-hook -c 'touch " + marker + "'",
		"internal-sftp -f " + marker, "/usr/lib/openssh/sftp-server; touch " + marker,
	} {
		c.ssh(t, strings.NewReader(""), cmd)
		if _, err := os.Lstat(marker); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%q ran on the host", cmd)
		}
	}
	if r := c.ssh(t, nil, "docker ps; ls /run/podspawn /var/run/docker.sock; cat /etc/shadow"); strings.Contains(r.stdout, s.ID) || strings.Contains(r.stdout, "daemon.sock") {
		t.Errorf("the host shows in the sandbox: %v", r)
	}
	if r := c.ssh(t, nil, "-t", "/bin/bash", "-c", "uname -v"); strings.Contains(r.stdout, "Debian") {
		t.Errorf("kernel: %v", r)
	}
	long := strings.Repeat("x", 70_000)
	if r := c.ssh(t, strings.NewReader("echo a shell"), "echo", long, long); r.code == 0 && len(r.stdout) != 2*len(long)+2 || r.code != 0 && r.stdout != "" {
		t.Errorf("a command of 140 KB: exit %d, %d bytes of output; want all of it or an error, never a shell", r.code, len(r.stdout))
	}
	if r := run(t, nil, "ssh", append(c.args("-s"), c.login, "no-such-subsystem")...); r.code == 0 {
		t.Errorf("unknown subsystem: %v", r)
	}
	env := run(t, nil, "env", append([]string{"LC_EVIL=$(touch " + marker + ")", "DOCKER_HOST=x", "LD_PRELOAD=", "BASH_ENV=/x", "ssh"},
		append(c.args("-o", "SendEnv=LC_EVIL DOCKER_HOST BASH_ENV LANG"), c.login, "env")...)...)
	for _, v := range []string{"LC_EVIL", "DOCKER_HOST", "BASH_ENV"} {
		if strings.Contains(env.stdout, v) {
			t.Errorf("%s arrived: %s", v, env.stdout)
		}
	}
}

// Threat 36: without sshd's ForceCommand and without the certificate's, the login
// shell alone still confines.
func TestLoginShellConfinesAlone(t *testing.T) {
	s := create(t)
	for _, args := range [][]string{{"-c", "id; touch /tmp/on-the-host"}, {"-c", "/bin/sh"}, {"-l"}, {}} {
		cmd := exec.Command("setpriv", append([]string{"--reuid", uidOf(t, s), "--regid", "69999", "--clear-groups", "/usr/libexec/podspawn/podspawn-hook"}, args...)...)
		cmd.Stdin = strings.NewReader("touch /tmp/on-the-host\n")
		out, err := cmd.Output()
		if err == nil || len(out) != 0 {
			t.Errorf("podspawn-hook %q outside of an SSH connection: %q, %v, want an error and no output", args, out, err)
		}
		if _, err := os.Lstat("/tmp/on-the-host"); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("podspawn-hook %q ran a command on the host", args)
		}
	}
}

func uidOf(t *testing.T, s sandbox) string {
	t.Helper()
	r := run(t, nil, "id", "-u", s.Login)
	if r.code != 0 {
		t.Fatalf("id -u %s: %v", s.Login, r)
	}
	return strings.TrimSpace(r.stdout)
}

// Nothing that a client forwards reaches the host: not its loopback, where
// somebody listens on just that port, nor its unix sockets, nor does a tunnel
// (threats 50-54, 60). What works is in forward_test.go.
func TestForwardingNeverReachesTheHost(t *testing.T) {
	s := create(t)
	c := connectable(t, s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var reached atomic.Int32
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			reached.Add(1)
			_ = conn.Close()
		}
	}()
	target := l.Addr().String()
	sock := filepath.Join(shortDir(t), "s")
	t.Run("-W", func(t *testing.T) {
		if r := run(t, strings.NewReader("x"), "ssh", append(c.args("-W", target), c.login)...); r.stdout != "" {
			t.Errorf("ssh -W: %v", r)
		}
	})
	t.Run("-L", func(t *testing.T) {
		port := freePort(t)
		forwards(t, c, []int{port}, "-L", fmt.Sprintf("%d:%s", port, target))
		if got, err := echoes(local(port), "x"); err == nil && got != "" {
			t.Errorf("ssh -L: %q", got)
		}
	})
	t.Run("-L to a unix socket", func(t *testing.T) {
		r := run(t, nil, "sh", "-c", `ssh "$@" & p=$!; sleep 2; printf 'GET /version HTTP/1.0\r\n\r\n' | nc -w2 -U `+sock+`; kill -KILL $p; wait $p 2>/dev/null`, "sh",
			"-F", filepath.Join(c.dir, "ssh_config"), "-o", "ControlMaster=no", "-o", "ControlPath=none", "-N", "-L", sock+":/run/docker.sock", c.login)
		if strings.Contains(r.stdout, "Version") {
			t.Errorf("Docker answered: %v", r)
		}
	})
	t.Run("-R", func(t *testing.T) {
		r := run(t, nil, "ssh", append(c.args("-o", "ExitOnForwardFailure=yes", "-R", "28081:"+target), c.login, "true")...)
		_, open := start(t, nil, "ssh", append(c.args("-R", "28081:"+target), c.login, "echo open; sleep 60")...)
		if _, err := io.ReadFull(open, make([]byte, 5)); err != nil || r.code != 0 {
			t.Fatalf("ssh -R: %v, %v", r, err)
		}
		if err := dials("127.0.0.1:28081"); err == nil {
			t.Error("ssh -R listens on the host")
		}
	})
	t.Run("-R of a unix socket", func(t *testing.T) {
		if r := run(t, nil, "ssh", append(c.args("-o", "ExitOnForwardFailure=yes", "-R", "/tmp/forwarded.sock:"+target), c.login, "true")...); r.code == 0 {
			t.Errorf("ssh -R: %v", r)
		}
		if _, err := os.Lstat("/tmp/forwarded.sock"); err == nil {
			t.Error("a socket was made on the host")
		}
	})
	t.Run("-A", func(t *testing.T) {
		r := run(t, nil, "sh", "-c", `eval "$(ssh-agent)" >/dev/null; ssh "$@"; kill $SSH_AGENT_PID`, "sh",
			"-F", filepath.Join(c.dir, "ssh_config"), "-o", "ControlMaster=no", "-o", "ControlPath=none", "-A", c.login, "echo agent=$SSH_AUTH_SOCK")
		if !strings.Contains(r.stdout, "agent=\n") {
			t.Errorf("ssh -A: %v", r)
		}
	})
	t.Run("-w", func(t *testing.T) {
		if r := run(t, nil, "ssh", append(c.args("-o", "ExitOnForwardFailure=yes", "-w", "any:any"), c.login, "true")...); r.code == 0 {
			t.Errorf("ssh -w: %v", r)
		}
	})
	if n := reached.Load(); n != 0 {
		t.Errorf("the host's loopback was reached %d times", n)
	}
}

// breakHost changes the host for one test; the function it returns repairs it.
func breakHost(t *testing.T, path string, change func(string) string) (repair func()) {
	t.Helper()
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(change(string(old))), st.Mode()); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.WriteFile(path, old, st.Mode()); err != nil {
			t.Error(err)
		}
		// The manifest knows the file by content; its identity changed.
		if err := os.Chtimes(path, st.ModTime(), st.ModTime()); err != nil {
			t.Error(err)
		}
	}
}

// Threat 99: the namespace step fails in one of four ways; the login is refused,
// and what the host rule protects stays closed.
func TestFailedNamespaceStepRefusesTheLogin(t *testing.T) {
	h := need(t)
	refused := func(t *testing.T, c client) {
		t.Helper()
		r := c.ssh(t, nil, "echo in")
		if r.code == 0 || strings.Contains(r.stdout, "in\n") {
			t.Errorf("ssh: %v, want refused", r)
		}
		for _, login := range []string{"root", h.realUser} {
			if r := h.asRealUser(t, login, "echo in"); r.stdout != "in\n" {
				t.Errorf("%s can't log in: %v", login, r)
			}
		}
	}
	t.Run("the namespace is missing", func(t *testing.T) {
		s := create(t)
		c := connectable(t, s)
		if err := command("ip", "netns", "del", s.Login); err != nil {
			t.Fatal(err)
		}
		refused(t, c)
	})
	t.Run("another namespace of that name", func(t *testing.T) {
		s := create(t)
		c := connectable(t, s)
		if err := errors.Join(command("ip", "netns", "del", s.Login), command("ip", "netns", "add", s.Login)); err != nil {
			t.Fatal(err)
		}
		refused(t, c)
	})
	t.Run("the name is gone from NSS", func(t *testing.T) {
		s := create(t)
		c := connectable(t, s)
		defer breakHost(t, "/var/lib/extrausers/passwd", func(string) string { return "" })()
		refused(t, c)
	})
	t.Run("the group is empty", func(t *testing.T) {
		s := create(t)
		c := connectable(t, s)
		defer breakHost(t, "/var/lib/extrausers/group", func(string) string { return "" })()
		refused(t, c)
	})
	t.Run("our PAM lines are lost", func(t *testing.T) {
		s := create(t)
		c := connectable(t, s)
		repair := breakHost(t, "/etc/pam.d/sshd", func(old string) string {
			var kept []string
			for _, line := range strings.Split(old, "\n") {
				if !strings.Contains(line, "pam_usernet") && !strings.Contains(line, "podspawn") {
					kept = append(kept, line)
				}
			}
			return strings.Join(kept, "\n")
		})
		refused(t, c)
		repair()
		if r := c.ssh(t, nil, "echo in"); r.stdout != "in\n" {
			t.Errorf("after the repair: %v", r)
		}
	})
	t.Run("the host rule is lost", func(t *testing.T) {
		s := create(t)
		c := connectable(t, s)
		if err := command("nft", "flush", "ruleset"); err != nil {
			t.Fatal(err)
		}
		eventually(t, 5*time.Second, func() error {
			out, err := exec.Command("nft", "list", "table", "inet", "podspawn").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "skuid 70000-98999") {
				return fmt.Errorf("not back: %s", out)
			}
			return nil
		})
		if r := c.ssh(t, nil, "echo in"); r.stdout != "in\n" {
			t.Errorf("with the rule back: %v", r)
		}
	})
}

// Threat 45: the daemon's socket in the hands of others.
func TestDaemonSocketRefusesStrangers(t *testing.T) {
	s := create(t)
	ask := func(uid, op string, body map[string]any) string {
		b, err := json.Marshal(map[string]any{"v": 1, "op": op, "body": body})
		if err != nil {
			t.Fatal(err)
		}
		return asUser(t, uid, string(b))
	}
	api := strings.TrimSpace(run(t, nil, "id", "-u", "podspawn-api").stdout)
	auth := strings.TrimSpace(run(t, nil, "id", "-u", "podspawn-auth").stdout)
	for _, tc := range []struct {
		name, uid, op string
		body          map[string]any
	}{
		{"a stranger asks for a session", "1234", "hook.session", map[string]any{"pty": false}},
		{"a stranger asks for a list", "1234", "api.list", map[string]any{}},
		{"the sandbox's uid, outside of sshd", uidOf(t, s), "hook.session", map[string]any{"pty": false}},
		{"the sandbox's uid asks for the API", uidOf(t, s), "api.list", map[string]any{}},
		{"the auth hook's user asks for a session", auth, "hook.session", map[string]any{"pty": false}},
		{"the auth hook's user claims", auth, "hook.pam-open", map[string]any{"user": s.Login, "auth_info": "", "source": ""}},
		{"root outside of sshd claims", "0", "hook.pam-open", map[string]any{"user": s.Login, "auth_info": "", "source": ""}},
		// Threat 101: the API process without its caller's credential.
		{"podspawn-api lists", api, "api.list", map[string]any{}},
		{"podspawn-api creates", api, "api.create", map[string]any{"spec": map[string]any{}}},
		{"podspawn-api executes", api, "api.exec", map[string]any{"sandbox": s.ID, "pty": false, "command": "id", "wait": 0}},
		{"podspawn-api issues", api, "api.issue", map[string]any{"sandbox": s.ID, "public_key": "x"}},
		{"podspawn-api destroys", api, "api.destroy", map[string]any{"sandbox": s.ID, "wait": 0}},
		{"podspawn-api makes a token", api, "api.token-create", map[string]any{"subject": "me"}},
		{"podspawn-api plays a hook", api, "hook.session", map[string]any{"pty": false}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := ask(tc.uid, tc.op, tc.body); !strings.Contains(got, `"error"`) || strings.Contains(got, `"body"`) {
				t.Errorf("%s as uid %s: %s, want an error alone", tc.op, tc.uid, got)
			}
		})
	}
}

// Threat 101 for the local socket: a handle that podspawn-api invents, or a
// descriptor of another listener of root's, makes nobody root.
func TestInventedPeerHandleIsNobody(t *testing.T) {
	need(t)
	api := strings.TrimSpace(run(t, nil, "id", "-u", "podspawn-api").stdout)
	for _, auth := range []string{`{"peer":"peer_0000000000000000"}`, `{"peer":"root"}`, `{"peer":""}`, `{"bearer":"x"}`, `{"bearer":"x","peer":"y"}`} {
		got := asUser(t, api, `{"v":1,"op":"api.whoami","body":{},"auth":`+auth+`}`)
		if !strings.Contains(got, `"unauthorized"`) {
			t.Errorf("whoami with %s: %s, want unauthorized", auth, got)
		}
	}
}

// asUser sends one request to the daemon's socket as another user, and returns
// the answer.
func asUser(t *testing.T, uid, request string) string {
	t.Helper()
	r := run(t, nil, "env", "E2E_ASK="+request, "setpriv", "--reuid", uid, "--regid", "65534", "--clear-groups", helper)
	if r.code != 0 {
		t.Fatalf("ask the daemon as %s: %v", uid, r)
	}
	return r.stdout
}

// askDaemon is asUser's other side, in a process of its own.
func askDaemon(request string) int {
	if path, ok := strings.CutPrefix(request, "flood "); ok {
		return flood(path)
	}
	conn, err := net.Dial("unix", "/run/podspawn/daemon.sock")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer conn.Close()
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(request)))
	if _, err := conn.Write(append(frame, request...)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var head [4]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		fmt.Println(`{"error":"closed"}`)
		return 0
	}
	if _, err := io.CopyN(os.Stdout, conn, int64(binary.BigEndian.Uint32(head[:]))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Threat 97: the sandbox's root can't make the host talk to another socket.
func TestGuestSocketCannotBeReplaced(t *testing.T) {
	s := create(t)
	c := connectable(t, s)
	r := c.ssh(t, nil, `sudo -n sh -c '
		cd /.podspawn/run && ls -la; rm -f guest.sock; mv guest.sock x; ln -s /run/docker.sock guest.sock; touch x; mkdir d
		cp /bin/sh suid; chmod 4755 suid; echo data > x; ls -A; ls -A | wc -l' 2>&1`)
	if !strings.HasSuffix(strings.TrimSpace(r.stdout), "guest.sock\n1") {
		t.Errorf("the socket directory was changed: %v", r)
	}
	if r := c.ssh(t, nil, "echo still"); r.stdout != "still\n" {
		t.Errorf("after the attempt: %v", r)
	}
}

// Threats 83, 84 and the hardening of design.md §5, from inside.
func TestHardening(t *testing.T) {
	s := create(t)
	c := connectable(t, s)
	sh := func(cmd string) string { t.Helper(); return strings.TrimSpace(c.ssh(t, nil, cmd).stdout) }
	if got := sh("sudo -n dmesg 2>&1 || dmesg"); !strings.Contains(got, "gVisor") {
		t.Errorf("dmesg: %s", got)
	}
	if got := sh("grep NoNewPrivs /proc/self/status; sudo -n grep NoNewPrivs /proc/self/status"); strings.Contains(got, "0") {
		t.Errorf("new privileges are possible: %s", got)
	}
	if got := sh("sudo -n id -u"); got != "0" {
		t.Errorf("sudo -n id -u = %q, want 0: it is the sandbox's own root", got)
	}
	if got := sh("tail -n +3 /proc/net/dev | cut -d: -f1 | xargs"); got != "lo eth0" {
		t.Errorf("interfaces: %q, want lo and that of its own network", got)
	}
	if got := sh("ulimit -Hu"); got != "512" {
		t.Errorf("processes: at most %q, want 512", got)
	}
	if r := c.ssh(t, nil, "sudo -n sh -c 'mount -t tmpfs none /mnt; unshare -m true; mknod /dev/sdz b 8 0; echo x > /proc/sysrq-trigger; echo x > /.podspawn/guest' 2>&1; echo done"); strings.Count(r.stdout, "\n") < 4 {
		t.Errorf("privileged operations: %v, want each to fail", r)
	}
	for _, other := range []string{"198.51.100.1", "127.0.0.1"} {
		if r := c.ssh(t, nil, "timeout 3 bash -c 'echo > /dev/tcp/"+other+"/22' 2>&1; echo status=$?"); strings.Contains(r.stdout, "status=0") {
			t.Errorf("port 22 of %s is reachable: %v", other, r)
		}
	}
	inspect := run(t, nil, "docker", "ps", "-q", "--filter", "label=dev.podspawn.sandbox="+s.ID)
	r := run(t, nil, "docker", "inspect", "-f", "{{.HostConfig.Runtime}} {{len .NetworkSettings.Networks}} {{.HostConfig.Privileged}} {{.HostConfig.CapDrop}} {{.HostConfig.LogConfig.Type}} {{.HostConfig.Memory}}", strings.TrimSpace(inspect.stdout))
	if !strings.HasPrefix(r.stdout, "podspawn-runsc-10g 1 false [ALL] none 1073741824") {
		t.Errorf("container: %v", r)
	}
}

func TestFailedStartsSayWhy(t *testing.T) {
	need(t)
	for _, tc := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"unknown image", []string{"--image", "no/such:image"}, 3, "image"},
		{"bad image reference", []string{"--image", "../../etc/passwd"}, 2, "image"},
		{"egress", []string{"--egress", "full"}, -1, "egress"},
		{"too long", []string{"--ttl", "48h"}, -1, "ttl"},
		{"bad name", []string{"A_B;c"}, 2, "name"},
		{"unknown flag", []string{"--no-such-flag"}, 2, "flag"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := run(t, nil, podspawn, append([]string{"create"}, tc.args...)...)
			if r.code == 0 || tc.code > 0 && r.code != tc.code || r.stdout != "" {
				t.Errorf("create %q: %v, want exit %d", tc.args, r, tc.code)
			}
			if !strings.Contains(r.stderr, "podspawn: error: ") || !strings.Contains(r.stderr, "podspawn: hint: ") || !strings.Contains(r.stderr, tc.want) {
				t.Errorf("create %q says %q", tc.args, r.stderr)
			}
			if strings.Count(r.stderr, "\n") > 2 {
				t.Errorf("more than an error and a hint: %s", r.stderr)
			}
		})
	}
	podfile := filepath.Join(t.TempDir(), "podfile.yaml")
	if err := os.WriteFile(podfile, []byte("image: podspawn/base\nprivileged: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := run(t, nil, podspawn, "create", "-f", podfile); r.code != 2 || !strings.Contains(r.stderr, "privileged") || !strings.Contains(r.stderr, "line 2") && !strings.Contains(r.stderr, ":2") {
		t.Errorf("podfile with an unknown key: %v, want exit 2 and the line", r)
	}
}
