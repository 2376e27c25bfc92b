package portal

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podspawn/podspawn/sandbox"
)

func TestUserKeepsPortalAndProcessesWhenHerSandboxCloses(t *testing.T) {
	needRoot(t)
	h, ctx := newHost(t), context.Background()
	const uid = sandbox.MaxUserUID // the last to be given out, should a lab run beside this
	cookie, err := h.OpenUser(ctx, "alice", uid)
	if err != nil {
		t.Fatalf("OpenUser: %v", err)
	}
	t.Cleanup(func() {
		if err := h.CloseUser(ctx, "alice", uid); err != nil {
			t.Errorf("CloseUser: %v", err)
		}
		if left, err := processesOf(uid); err != nil || len(left) > 0 {
			t.Errorf("processes after CloseUser: %v, %v", left, err)
		}
		if _, err := os.Lstat(filepath.Join(h.c.NetNS, "alice")); err == nil {
			t.Error("CloseUser left the namespace")
		}
	})
	if again, err := h.OpenUser(ctx, "alice", uid); err != nil || again != cookie {
		t.Fatalf("second OpenUser = %d, %v, want %d", again, err, cookie)
	}
	if users, err := h.ListUsers(ctx); err != nil || users["alice"] != uid || len(users) != 1 {
		t.Errorf("ListUsers = %v, %v", users, err)
	}

	login := sandbox.NewID().Login()
	for range 2 { // both are idempotent
		if err := h.Share(ctx, "alice", login); err != nil {
			t.Fatalf("Share: %v", err)
		}
		if got, err := h.Open(ctx, login, uid); err != nil || got != cookie {
			t.Fatalf("Open of a shared portal = %d, %v, want %d", got, err, cookie)
		}
	}
	other := startAs(t, uid, "sleep", "600") // of another connection of hers
	if err := h.Close(ctx, login, uid); err != nil {
		t.Fatalf("Close: %v", err)
	}
	if pids, err := processesOf(uid); err != nil || len(pids) != 1 || pids[0] != other.Process.Pid {
		t.Errorf("processes after the sandbox's Close: %v, %v, want %d", pids, err, other.Process.Pid)
	}
	if got, err := Cookie(filepath.Join(h.c.NetNS, "alice")); err != nil || got != cookie {
		t.Errorf("her portal after the sandbox's Close: %d, %v, want %d", got, err, cookie)
	}
	if logins, err := h.List(ctx); err != nil || len(logins) != 0 {
		t.Errorf("List = %v, %v, want none", logins, err)
	}
}

func TestAliasIsTheSandboxsPortalUnderAnotherName(t *testing.T) {
	needRoot(t)
	h, ctx := newHost(t), context.Background()
	login := sandbox.NewID().Login()
	cookie, err := h.Open(ctx, login, testUID)
	if err != nil {
		t.Fatal(err)
	}
	const alias = "alice+web"
	for range 2 {
		if err := h.OpenAlias(ctx, login, alias, testUID); err != nil {
			t.Fatalf("OpenAlias: %v", err)
		}
	}
	if got, err := Cookie(filepath.Join(h.c.NetNS, alias)); err != nil || got != cookie {
		t.Errorf("the alias leads to %d, %v, want %d", got, err, cookie)
	}
	passwd, err := os.ReadFile(filepath.Join(h.c.ExtraUsers, "passwd"))
	if err != nil || strings.Count(string(passwd), alias+":x:97999:69999:") != 1 {
		t.Errorf("passwd = %q, %v, want one line of the alias", passwd, err)
	}
	for range 2 {
		if err := h.CloseAlias(ctx, alias); err != nil {
			t.Fatalf("CloseAlias: %v", err)
		}
	}
	if err := h.Close(ctx, login, testUID); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{h.c.NetNS, h.c.EtcNetNS} {
		if _, err := os.Lstat(filepath.Join(dir, alias)); err == nil {
			t.Errorf("%s/%s is left", dir, alias)
		}
	}
}

func TestUserLoginsRefuseWhatIsNone(t *testing.T) {
	h, ctx := New(Config{ExtraUsers: t.TempDir(), NetNS: t.TempDir(), EtcNetNS: t.TempDir()}), context.Background()
	for _, name := range []string{"", "root", "../x", "a b", "alice+web", "sbx-0000000000000000"} {
		if _, err := h.OpenUser(ctx, name, sandbox.MinUserUID); err == nil {
			t.Errorf("OpenUser(%q) succeeded", name)
		}
		if err := h.CloseUser(ctx, name, sandbox.MinUserUID); err == nil {
			t.Errorf("CloseUser(%q) succeeded", name)
		}
	}
	for _, uid := range []int{0, 1000, sandbox.MinUID, sandbox.MaxSandboxUID, sandbox.MaxUserUID + 1} {
		if err := h.CloseUser(ctx, "alice", uid); err == nil {
			t.Errorf("CloseUser with uid %d succeeded", uid)
		}
	}
	for _, alias := range []string{"alice", "alice+", "alice+../x", "+web", "root+web"} {
		if err := h.CloseAlias(ctx, alias); err == nil {
			t.Errorf("CloseAlias(%q) succeeded", alias)
		}
	}
}
