package daemon

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/podspawn/podspawn/ephemeralkeys"
)

func openKeyring(t *testing.T, dir string, now time.Time) *Keyring {
	t.Helper()
	k, err := OpenKeyring(dir, filepath.Join(dir, "trusted.pub"), now)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// wantTrusted compares what the keyring accepts, and what sshd's file says, with keys.
func wantTrusted(t *testing.T, k *Keyring, dir string, now time.Time, want ...ssh.PublicKey) {
	t.Helper()
	got := k.Trusted(now)
	if len(got) != len(want) {
		t.Errorf("%d keys are trusted, want %d", len(got), len(want))
	}
	text, err := os.ReadFile(filepath.Join(dir, "trusted.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "\n"); n != len(want) {
		t.Errorf("sshd's file has %d keys, want %d", n, len(want))
	}
	for _, key := range want {
		found := false
		for _, g := range got {
			found = found || bytes.Equal(g.Marshal(), key.Marshal())
		}
		line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
		if !found || !strings.Contains(string(text), line) {
			t.Errorf("%s: trusted %v, in sshd's file %v", ssh.FingerprintSHA256(key), found, strings.Contains(string(text), line))
		}
	}
}

func TestKeyringRotation(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	if _, _, err := ephemeralkeys.LoadOrCreateCA(filepath.Join(dir, caKeyFile), "first"); err != nil {
		t.Fatal(err)
	}
	k := openKeyring(t, dir, now)
	first := k.Current().PublicKey()
	wantTrusted(t, k, dir, now, first)

	if err := k.Rotate(now, 15*time.Minute); err != nil {
		t.Fatal(err)
	}
	second := k.Current().PublicKey()
	if bytes.Equal(first.Marshal(), second.Marshal()) {
		t.Fatal("the same key signs after a rotation")
	}
	wantTrusted(t, k, dir, now, second, first)

	k = openKeyring(t, dir, now.Add(time.Minute)) // a daemon that was restarted meanwhile
	if !bytes.Equal(k.Current().PublicKey().Marshal(), second.Marshal()) {
		t.Error("another key signs after a restart")
	}
	wantTrusted(t, k, dir, now.Add(time.Minute), second, first)

	later := now.Add(15 * time.Minute)
	if got := len(k.Trusted(later)); got != 1 {
		t.Errorf("%d keys are trusted after the overlap, want 1, even before Tidy", got)
	}
	if err := k.Tidy(later); err != nil {
		t.Fatal(err)
	}
	wantTrusted(t, k, dir, later, second)

	if err := k.Rotate(later, 0); err != nil {
		t.Fatal(err)
	}
	wantTrusted(t, k, dir, later, k.Current().PublicKey())
}

// A crash before the next key takes the present one's name changes nothing about
// who signs, and leaves no private key behind.
func TestKeyringCrashInRotation(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	if _, _, err := ephemeralkeys.LoadOrCreateCA(filepath.Join(dir, caKeyFile), "first"); err != nil {
		t.Fatal(err)
	}
	first := openKeyring(t, dir, now).Current().PublicKey()
	if _, _, err := ephemeralkeys.LoadOrCreateCA(filepath.Join(dir, nextKeyFile), "next"); err != nil {
		t.Fatal(err)
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(first)))
	list := `[{"key":"` + line + `","until":"` + now.Add(time.Minute).Format(time.RFC3339) + `"}]`
	if err := os.WriteFile(filepath.Join(dir, retiredFile), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	k := openKeyring(t, dir, now)
	wantTrusted(t, k, dir, now, first)
	if !bytes.Equal(k.Current().PublicKey().Marshal(), first.Marshal()) {
		t.Error("another key signs")
	}
	if _, err := os.Stat(filepath.Join(dir, nextKeyFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the next key is still there: %v", err)
	}
	// It is no obstacle for the next try.
	if err := k.Rotate(now, time.Minute); err != nil {
		t.Error(err)
	}
}

func TestKeyringDamagedListIsRefused(t *testing.T) {
	for name, text := range map[string]string{"no JSON": "{", "no key": `[{"key":"ssh-ed25519 x","until":"2026-01-02T03:04:05Z"}]`} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, _, err := ephemeralkeys.LoadOrCreateCA(filepath.Join(dir, caKeyFile), "c"); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, retiredFile), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenKeyring(dir, filepath.Join(dir, "trusted.pub"), time.Now()); err == nil {
				t.Error("a damaged list of former CAs is taken for an empty one")
			}
		})
	}
}
