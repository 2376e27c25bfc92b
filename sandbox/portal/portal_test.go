package portal

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/podspawn/podspawn/sandbox"
)

// The tests make namespaces, firewall rules and processes of other uids. They
// run in mount, network and process namespaces of their own, in a second process of this
// binary, so that the host sees none of it.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv("PORTAL_TEST_INSIDE") != "" {
		os.Exit(m.Run())
	}
	args := append([]string{
		"-m", "-n", "-p", "--fork", "--mount-proc", "--kill-child", "--propagation", "private", "/bin/sh", "-ec",
		`mkdir -p /run/netns /etc/netns; mount -t tmpfs none /run; mount -t tmpfs none /etc/netns; mkdir /run/netns; ip link set lo up; exec "$0" "$@"`,
		os.Args[0],
	}, os.Args[1:]...)
	cmd := exec.Command("unshare", args...)
	cmd.Env = append(os.Environ(), "PORTAL_TEST_INSIDE=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "tests in their own namespaces:", err)
		os.Exit(1)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if strings.Contains(","+os.Getenv("PODSPAWN_TEST_REQUIRE")+",", ",root,") {
		t.Fatal("root is required, and this is not root")
	}
	t.Skip("needs root: network namespaces, nftables, processes of other uids")
}

const testUID = sandbox.MaxSandboxUID

func newHost(t *testing.T) *Host {
	t.Helper()
	return New(Config{ExtraUsers: t.TempDir(), Temp: []string{t.TempDir()}})
}

func startAs(t *testing.T, uid int, argv ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: sandbox.LoginGID}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it is gone when the test did its work
		_ = cmd.Wait()
	})
	return cmd
}

func TestOpenMakesPortalAndLoginAndCloseLeavesNothing(t *testing.T) {
	needRoot(t)
	h, ctx := newHost(t), context.Background()
	other := "alice:x:5000:5000::/home/alice:/bin/sh"
	if err := os.WriteFile(filepath.Join(h.c.ExtraUsers, "passwd"), []byte(other+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	login := sandbox.NewID().Login()
	cookie, err := h.Open(ctx, login, testUID)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	again, err := h.Open(ctx, login, testUID)
	if err != nil || again != cookie {
		t.Fatalf("second Open = %d, %v, want %d, nil", again, err, cookie)
	}
	if self, err := CookieOf(os.Getpid()); err != nil || self == cookie {
		t.Fatal("the portal is the host's own namespace")
	}
	out, err := exec.Command("ip", "-n", login, "-o", "addr").CombinedOutput()
	if err != nil {
		t.Fatalf("ip addr: %v: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, " lo ") {
			t.Errorf("the portal has more than a loopback interface: %s", line)
		}
	}
	if routes, _ := exec.Command("ip", "-n", login, "route").CombinedOutput(); len(routes) != 0 {
		t.Errorf("the portal has routes: %s", routes)
	}
	passwd, _ := os.ReadFile(filepath.Join(h.c.ExtraUsers, "passwd"))
	want := other + "\n" + login + ":x:97999:69999:podspawn sandbox:/var/lib/podspawn/home:/usr/libexec/podspawn/podspawn-hook\n"
	if string(passwd) != want {
		t.Errorf("passwd = %q, want %q", passwd, want)
	}

	startAs(t, testUID, "sleep", "600")
	left := filepath.Join(h.c.Temp[0], "left")
	if err := os.MkdirAll(filepath.Join(left, "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(left, "deep", "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(left, testUID, sandbox.LoginGID); err != nil {
		t.Fatal(err)
	}
	shm := makeShm(t, testUID)

	if err := h.Close(ctx, login, testUID); err != nil {
		t.Fatalf("Close: %v", err)
	}
	if pids, err := processesOf(testUID); err != nil || len(pids) != 0 {
		t.Errorf("processes of the uid after Close: %v, %v", pids, err)
	}
	if _, err := os.Lstat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder is still there: %v", err)
	}
	if _, err := os.Lstat(outside); err != nil {
		t.Errorf("Close followed a link out of the folder: %v", err)
	}
	if ids, err := ipcOf("/proc/sysvipc/shm", testUID); err != nil || len(ids) != 0 {
		t.Errorf("shared memory %d is still there: %v, %v", shm, ids, err)
	}
	if all, err := h.List(ctx); err != nil || len(all) != 0 {
		t.Errorf("List after Close = %v, %v, want nothing", all, err)
	}
	passwd, _ = os.ReadFile(filepath.Join(h.c.ExtraUsers, "passwd"))
	if string(passwd) != other+"\n" {
		t.Errorf("passwd after Close = %q, want only the other user", passwd)
	}
	if err := h.Close(ctx, login, testUID); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func makeShm(t *testing.T, uid int) int {
	t.Helper()
	out, err := exec.Command("setpriv", "--reuid", fmt.Sprint(uid), "--clear-groups", "ipcmk", "-M", "4096").CombinedOutput()
	if err != nil {
		t.Fatalf("ipcmk: %v: %s", err, out)
	}
	ids, err := ipcOf("/proc/sysvipc/shm", uid)
	if err != nil || len(ids) != 1 {
		t.Fatalf("shared memory of uid %d = %v, %v, want one", uid, ids, err)
	}
	return ids[0]
}

func TestOpenRepairsWhatACrashLeft(t *testing.T) {
	needRoot(t)
	h, ctx := newHost(t), context.Background()
	login := sandbox.NewID().Login()
	// The name exists, the namespace was never mounted on it.
	if err := os.WriteFile(filepath.Join("/run/netns", login), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if all, err := h.List(ctx); err != nil || len(all) != 1 {
		t.Fatalf("List = %v, %v, want the half-made login", all, err)
	}
	if _, err := h.Open(ctx, login, testUID); err != nil {
		t.Fatalf("Open: %v", err)
	}
	if err := h.Close(ctx, login, 0); err != nil {
		t.Fatalf("Close without uid: %v", err)
	}
	if all, _ := h.List(ctx); len(all) != 0 {
		t.Errorf("left: %v", all)
	}
}

func TestRefusesWhatIsNoSandbox(t *testing.T) {
	h, ctx := New(Config{ExtraUsers: t.TempDir(), NetNS: t.TempDir(), EtcNetNS: t.TempDir()}), context.Background()
	for _, c := range []struct {
		name, login string
		uid         int
	}{
		{"root", "root", testUID},
		{"path", "../../etc", testUID},
		{"uid 0", sandbox.NewID().Login(), 0},
		{"user's uid", sandbox.NewID().Login(), 1000},
		{"above the range", sandbox.NewID().Login(), sandbox.MaxUID + 1},
	} {
		if _, err := h.Open(ctx, c.login, c.uid); err == nil {
			t.Errorf("%s: Open(%q, %d) succeeded", c.name, c.login, c.uid)
		}
		if c.uid != 0 {
			if err := h.Close(ctx, c.login, c.uid); err == nil {
				t.Errorf("%s: Close(%q, %d) succeeded", c.name, c.login, c.uid)
			}
		}
	}
}

func TestHostRuleStopsSandboxUIDs(t *testing.T) {
	needRoot(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	reach := func(uid int) bool {
		port := l.Addr().(*net.TCPAddr).Port
		cmd := exec.Command("bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d", port))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: 65534}}
		return cmd.Run() == nil
	}
	if err := RemoveHostRule(); err != nil {
		t.Fatal(err)
	}
	if err := CheckHostRule(); !errors.Is(err, ErrNoHostRule) {
		t.Fatalf("CheckHostRule without rule = %v, want ErrNoHostRule", err)
	}
	if !reach(testUID) {
		t.Fatal("without the rule the uid can't connect either: the test shows nothing")
	}
	if err := EnsureHostRule(); err != nil {
		t.Fatalf("EnsureHostRule: %v", err)
	}
	if err := EnsureHostRule(); err != nil {
		t.Fatalf("second EnsureHostRule: %v", err)
	}
	for _, c := range []struct {
		uid  int
		want bool
	}{
		{sandbox.MinUID, false},
		{testUID, false},
		{sandbox.MaxUID, false},
		{80000, false},
		{sandbox.MinUID - 1, true},
		{sandbox.MaxUID + 1, true},
		{1000, true},
	} {
		if got := reach(c.uid); got != c.want {
			t.Errorf("uid %d reaches the host's loopback: %v, want %v", c.uid, got, c.want)
		}
	}

	for _, c := range []struct {
		name   string
		change func(*nftables.Conn, *nftables.Table, *nftables.Chain)
	}{
		{"table gone", func(n *nftables.Conn, t *nftables.Table, _ *nftables.Chain) { n.DelTable(t) }},
		{"rule flushed", func(n *nftables.Conn, _ *nftables.Table, ch *nftables.Chain) { n.FlushChain(ch) }},
		{"accept before it", func(n *nftables.Conn, tb *nftables.Table, ch *nftables.Chain) {
			n.InsertRule(&nftables.Rule{Table: tb, Chain: ch, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}})
		}},
		{"another rule", func(n *nftables.Conn, tb *nftables.Table, ch *nftables.Chain) {
			n.FlushChain(ch)
			n.AddRule(&nftables.Rule{Table: tb, Chain: ch, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}})
		}},
	} {
		n, err := nftables.New()
		if err != nil {
			t.Fatal(err)
		}
		tb := &nftables.Table{Name: ruleTable, Family: nftables.TableFamilyINet}
		c.change(n, tb, &nftables.Chain{Name: ruleChain, Table: tb})
		if err := n.Flush(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if err := CheckHostRule(); !errors.Is(err, ErrNoHostRule) {
			t.Errorf("%s: CheckHostRule = %v, want ErrNoHostRule", c.name, err)
		}
		if err := EnsureHostRule(); err != nil {
			t.Errorf("%s: EnsureHostRule: %v", c.name, err)
		}
		if reach(testUID) {
			t.Errorf("%s: not repaired", c.name)
		}
	}
}

func TestKillAllWaitsForProcessesThatForkAlong(t *testing.T) {
	needRoot(t)
	startAs(t, testUID, "bash", "-c", `for i in 1 2 3 4 5 6 7 8; do (trap '' TERM HUP; sleep 600 & wait) & done; wait`)
	deadline := time.Now().Add(10 * time.Second)
	for {
		if pids, err := processesOf(testUID); err != nil {
			t.Fatal(err)
		} else if len(pids) > 8 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the processes did not start")
		}
		time.Sleep(5 * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := killAll(ctx, testUID); err != nil {
		t.Fatal(err)
	}
	if pids, err := processesOf(testUID); err != nil || len(pids) != 0 {
		t.Errorf("left: %v, %v", pids, err)
	}
}

// A namespace that is deleted and made again has the same inode number more often
// than not; it must not pass for the old one.
func TestPortalMadeAgainIsAnother(t *testing.T) {
	needRoot(t)
	h, ctx := newHost(t), context.Background()
	login := sandbox.NewID().Login()
	seen := map[uint64]bool{}
	for range 5 {
		cookie, err := h.Open(ctx, login, testUID)
		if err != nil {
			t.Fatal(err)
		}
		if seen[cookie] {
			t.Fatalf("cookie %d came again: %v", cookie, seen)
		}
		seen[cookie] = true
		if err := h.Close(ctx, login, testUID); err != nil {
			t.Fatal(err)
		}
	}
}
