package portal

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

// A relay that a sandbox's portal could start: it holds the listeners that it was
// given and does nothing.
const idleRelay = "#!/bin/sh\n[ \"$1\" = relay ] && exec sleep 60\n"

func TestOpenRelayStartsOneAndCloseEndsIt(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	dir, err := os.MkdirTemp("/tmp", "relay") // where the sandbox's uid may run it
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	shell := filepath.Join(dir, "relay")
	if err := os.WriteFile(shell, []byte(idleRelay), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h := New(Config{ExtraUsers: t.TempDir(), Temp: []string{t.TempDir()}, Shell: shell})
	login := sandbox.NewID().Login()
	if err := h.OpenRelay(ctx, login, testUID); err == nil {
		t.Error("OpenRelay made a relay without a portal")
	}
	if _, err := h.Open(ctx, login, testUID); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds the first
		if err := h.OpenRelay(ctx, login, testUID); err != nil {
			t.Fatal(err)
		}
	}
	pids, err := processesOf(testUID)
	if err != nil || len(pids) != 1 {
		t.Fatalf("relays: %v, %v, want one", pids, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", testUID), fmt.Sprintf("Gid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", sandbox.RelayGID),
	} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status of the relay lacks %q:\n%s", want, status)
		}
	}
	portal, err := Cookie(filepath.Join("/run/netns", login))
	if err != nil {
		t.Fatal(err)
	}
	if ns, err := CookieOf(pids[0]); err != nil || ns != portal {
		t.Errorf("the relay is in namespace %d, %v, not in the portal %d", ns, err, portal)
	}
	out, err := exec.Command("ip", "netns", "exec", login, "nft", "list", "ruleset").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "skgid != 69998 redirect to :1") || strings.Count(string(out), "redirect") != 1 {
		t.Errorf("rules of the portal: %v\n%s", err, out)
	}
	// Whatever address: the relay's listener, which accepts in the kernel.
	for _, addr := range []string{"127.0.0.1:80", "198.51.100.7:443", "[::1]:80", "[2001:db8::1]:443"} {
		if out, err := exec.Command("ip", "netns", "exec", login, "bash", "-c", "exec 3<>/dev/tcp/"+strings.NewReplacer("]:", "/", "[", "").Replace(v4port(addr))).CombinedOutput(); err != nil {
			t.Errorf("connect to %s in the portal: %v: %s", addr, err, out)
		}
	}
	if c, err := net.DialTimeout("tcp", "127.0.0.1:1", time.Second); err == nil {
		_ = c.Close()
		t.Error("the relay listens in the host's namespace")
	}
	if err := h.Close(ctx, login, testUID); err != nil {
		t.Fatal(err)
	}
	if pids, err := processesOf(testUID); err != nil || len(pids) != 0 {
		t.Errorf("after Close: %v, %v", pids, err)
	}
}

// v4port turns the colon before an IPv4 address's port into bash's slash.
func v4port(addr string) string {
	if strings.HasPrefix(addr, "[") {
		return addr
	}
	return strings.Replace(addr, ":", "/", 1)
}

func TestNobodyTakesTheRelaysPort(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	h := newHost(t)
	login := sandbox.NewID().Login()
	if _, err := h.Open(ctx, login, testUID); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.Close(ctx, login, testUID); err != nil {
			t.Error(err)
		}
	}()
	out, err := exec.Command("ip", "netns", "exec", login, "setpriv", "--reuid", fmt.Sprint(testUID), "--regid", fmt.Sprint(sandbox.LoginGID), "--clear-groups",
		"python3", "-c", "import socket; socket.socket().bind(('127.0.0.1', 1))").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Permission denied") {
		t.Errorf("a sandbox's uid binds port 1: %v: %s", err, out)
	}
}
