package install

import (
	"context"
	"os"
	"testing"

	"github.com/podspawn/podspawn/sshhook/sshdtest"
)

func failed(cs []Check) map[string]string {
	bad := map[string]string{}
	for _, c := range cs {
		if c.Status == Fail {
			bad[c.Name] = c.Detail
		}
	}
	return bad
}

func TestDoctorFindsWhatIsBroken(t *testing.T) {
	fresh(t)
	for _, p := range []string{"podspawn-guest", "runsc"} {
		sshdtest.Write(t, "/usr/libexec/podspawn/"+p, "", 0o755)
	}
	before := failed(Checks(context.Background(), Options{}))
	for _, name := range []string{"sshd drop-in", "sshd for sandbox logins", "pam", "nsswitch", "users", "directories", "keys", "revocation list", "unchanged since set-up"} {
		if before[name] == "" {
			t.Errorf("before set-up, check %q passes", name)
		}
	}
	apply(t, Options{})
	if bad := failed(Checks(context.Background(), Options{})); len(bad) != 0 {
		t.Errorf("after set-up, failed: %v", bad)
	}
	for path, name := range map[string]string{
		pamPath: "pam", nssPath: "nsswitch", "/etc/ssh/sshd_config.d/00-podspawn.conf": "sshd drop-in",
		revokedKRL: "revocation list", userCAPub: "keys", DefaultConfig: "sshd configuration", extraGroup: "users",
	} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sshdtest.Write(t, path, "x\n", 0o644)
		cs := Checks(context.Background(), Options{})
		if failed(cs)[name] == "" {
			t.Errorf("%s is garbage and check %q passes", path, name)
		}
		for _, c := range cs {
			if c.Status != Pass && (c.Remedy == "" || c.Detail == "") {
				t.Errorf("check %+v has no remedy or detail", c)
			}
		}
		sshdtest.Write(t, path, string(b), 0o644)
	}
	if bad := failed(Checks(context.Background(), Options{})); len(bad) != 0 {
		t.Errorf("after the repair, failed: %v", bad)
	}
}
