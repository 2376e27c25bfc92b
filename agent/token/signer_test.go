package token

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestLoadOrCreateSigner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token_ed25519")
	first, err := LoadOrCreateSigner(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Lstat(path)
	if err != nil || st.Mode() != 0o400 {
		t.Errorf("mode = %v, %v, want 0400", st.Mode(), err)
	}
	second, err := LoadOrCreateSigner(path)
	if err != nil || second.Key().ID != first.Key().ID || !second.key.Equal(first.key) {
		t.Errorf("second LoadOrCreateSigner = %v, want the same key", err)
	}
	if names, err := os.ReadDir(filepath.Dir(path)); err != nil || len(names) != 1 {
		t.Errorf("the directory has %v, %v, want the key alone", names, err)
	}
	if _, err := LoadOrCreateSigner(filepath.Join(t.TempDir(), "missing", "key")); err == nil {
		t.Error("LoadOrCreateSigner in a missing directory = nil, want an error")
	}
}

func TestLoadOrCreateSignerConcurrentlyMakesOneKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	var ids sync.Map
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			s, err := LoadOrCreateSigner(path)
			if err != nil {
				t.Errorf("LoadOrCreateSigner = %v", err)
				return
			}
			ids.Store(s.Key().ID, true)
		})
	}
	wg.Wait()
	n := 0
	ids.Range(func(_, _ any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d keys are in use, want 1", n)
	}
}

func TestLoadOrCreateSignerRefusesUnsafeFiles(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := encode(t, key)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	file := func(text string, mode os.FileMode) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := []struct {
		name string
		make func(*testing.T, string)
		want string // "" is accepted
	}{
		{"ok", file(good, 0o400), ""},
		{"group reads", file(good, 0o440), "mode 0440"},
		{"others read", file(good, 0o604), "mode 0604"},
		{"empty", file("", 0o400), "PEM"},
		{"garbage", file("hello", 0o400), "PEM"},
		{"bad block", file("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 0o400), "can't be read"},
		{"two keys", file(good+good, 0o400), "PEM"},
		{"another type", file(encode(t, ec), 0o400), "Ed25519"},
		{"large", file(good+strings.Repeat("\n", 16<<10), 0o400), "larger"},
		{"link", func(t *testing.T, path string) {
			file(good, 0o400)(t, path+".real")
			if err := os.Symlink(path+".real", path); err != nil {
				t.Fatal(err)
			}
		}, "symbolic links"},
		{"fifo", func(t *testing.T, path string) {
			if err := syscall.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "regular file"},
		{"another owner", func(t *testing.T, path string) {
			if os.Geteuid() != 0 {
				t.Skip("only root can give a file away")
			}
			file(good, 0o400)(t, path)
			if err := os.Chown(path, 12345, 0); err != nil {
				t.Fatal(err)
			}
		}, "another user"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key")
			tt.make(t, path)
			s, err := LoadOrCreateSigner(path)
			if tt.want == "" {
				if err != nil || !s.key.Equal(key) {
					t.Errorf("LoadOrCreateSigner = %v, want the key", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("LoadOrCreateSigner = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func encode(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}
